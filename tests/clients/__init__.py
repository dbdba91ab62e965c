"""Clients written by others, and clients that misbehave, against a whole server."""

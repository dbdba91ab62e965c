"""Tokens in, tokens out: the inference engine. It knows no HTTP, no queue and no wire."""

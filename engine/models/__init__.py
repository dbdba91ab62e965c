"""Logits from tokens: the only rooms that touch a device."""

"""KV pages and the prefixes that share them."""

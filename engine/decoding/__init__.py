"""Pure rules of decoding: logits in, decision out. No model, no cache, no schedule."""

"""The training command: corpus to tokenizer, verifier, rollouts, drafter, figures and model card."""

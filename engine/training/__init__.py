"""The training command: from a corpus to two models, their figures and their card."""

"""Programs that a peer's own interpreter runs: they import that peer, and of ours nothing else."""

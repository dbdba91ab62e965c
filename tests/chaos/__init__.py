"""Many jobs through random faults, and then the proof that nothing was lost, doubled or leaked."""

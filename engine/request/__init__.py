"""What was asked for, and what has become of it so far."""

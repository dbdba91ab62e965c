"""One file, one way of generating."""

"""One command a table: `python -m benchmarks` lists them."""

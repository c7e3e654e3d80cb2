"""Speed, measured as a ratio, in one run: ``python -m benchmarks``."""

"""Tiles of the dense projections: `python -m benchmarks.tune.linear`."""

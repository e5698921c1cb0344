"""Tiles of the expert GEMMs: `python -m benchmarks.tune.experts`."""

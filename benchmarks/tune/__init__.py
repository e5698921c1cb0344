"""Searches for tile sizes, on the GPU at hand."""

"""Sizes in bytes: weights, KV cache, reserve, and the shortest decode step. Needs no SGLang."""

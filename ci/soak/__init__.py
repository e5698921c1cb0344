"""Thousands of random requests against the oracle: `python -m ci.soak`."""

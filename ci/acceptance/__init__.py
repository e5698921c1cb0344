"""Acceptance length of speculative decoding on LongCat-nano: `python -m ci.acceptance`."""

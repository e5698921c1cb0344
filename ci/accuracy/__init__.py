"""Accuracy gates of LongCat-nano, and lm-eval suites: `python -m ci.accuracy`."""

"""LongCat-nano: `python -m training.nano prepare | train | export`."""

"""One benchmark per operation: `python -m benchmarks.kernels.moe_router`."""

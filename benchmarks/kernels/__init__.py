"""One benchmark per kernel or library call: `python -m benchmarks.kernels.moe_router`.

timing.py is what they share; fp8_producers.py has inputs and references of kernels that are not
ours.
"""

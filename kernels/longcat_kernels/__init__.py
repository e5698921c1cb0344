"""GPU kernels of sglang-longcat. Knows torch and triton; never imports sglang.

One folder per operation:

    __init__.py    the public functions: formula, shapes, dtypes, exactness
    reference.py   plain torch: the oracle of the tests, and the CPU path
    workloads.py   seeded inputs that tests and benchmarks share
    _triton.py     the kernels; large ones have a launch.py for sizes and arguments
    warm_up.py     launches every variant that serving uses

Two predicates have one meaning everywhere: `supports(...)` says whether our kernel can run (sizes,
dtypes, device), `is_faster(...)` whether it beat the library when it was measured. The sizes of the
published model are in `lite.py`.
"""

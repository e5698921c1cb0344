"""GPU kernels of sglang-longcat. Knows torch and triton; never imports sglang.

One folder per operation: `reference.py` (plain torch, the oracle and the CPU path), `workloads.py`
(shapes shared by tests and benchmarks), `_triton.py` (kernel), `__init__.py` (the public function).
"""

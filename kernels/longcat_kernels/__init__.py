"""GPU kernels of sglang-longcat. Knows torch and triton; never imports sglang.

One folder per operation:

    __init__.py    the public functions: formula, shapes, dtypes, exactness
    reference.py   plain torch: the oracle of the tests, and the CPU path
    workloads.py   seeded inputs that tests and benchmarks share
    _triton.py     the kernels; large ones have a launch.py for sizes and arguments
    warm_up.py     launches every variant that serving uses

Beside the folders:

    lite.py            the published model's sizes
    row_table.py       rows of one table, on the GPU or in host memory
    kv_pool.py         the padding slot of the KV cache
    kv_rows.py         rows of the KV cache, bf16 and FP8
    fp8_layout.py      block scales in the layout that the FP8 GEMMs read
    dispatch.py        which launches run on the GPU and which fall back to the reference
    warm_up.py         all variants, before the first request
    compile_only.py    the same on a machine without a GPU

Two predicates have one meaning everywhere: `supports(...)` says whether our kernel can run (sizes,
dtypes, device), `is_faster(...)` whether it beat the library when it was measured. The sizes of the
published model are in `lite.py`.
"""

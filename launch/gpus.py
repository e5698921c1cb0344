"""How many CUDA GPUs this process may use, without importing torch.

Owns that number, for `launch/serve.py`, the benchmarks and the tests. They choose the environment
variables of the CPU engine before torch and SGLang are imported, so they cannot ask these.
"""

from __future__ import annotations

import ctypes


def gpu_count() -> int:
    """GPUs that the CUDA driver shows, which respects CUDA_VISIBLE_DEVICES. 0 without a driver, or
    if it fails."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

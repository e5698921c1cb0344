"""How many CUDA GPUs this process may use, without importing torch.

Owns that one number, for `serve.py` and the tests: both must choose the environment variables of
the CPU engine before torch and SGLang are imported, so neither may be asked.
"""

from __future__ import annotations

import ctypes


def gpu_count() -> int:
    """GPUs the CUDA driver shows (CUDA_VISIBLE_DEVICES counts); 0 without a driver or on error."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value

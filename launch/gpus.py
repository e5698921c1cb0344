"""How many CUDA GPUs this process may use, and which of them a worker gets, without torch.

Owns both answers, for `launch/serve.py`, the benchmarks and the tests. They choose environment
variables before torch and SGLang are imported, so they cannot ask these.
"""

from __future__ import annotations

import ctypes
import os


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


def gpu_of(worker: int) -> str:
    """CUDA_VISIBLE_DEVICES of one of several workers that take a GPU each, beginning again where
    there are fewer GPUs."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpu_count()))) or "0"
    shown = names.split(",")
    return shown[worker % len(shown)]

"""The compute capability of the first GPU, without a CUDA context.

PyTorch's and SGLang's questions make a context in some versions, which takes 0.5 GiB of the GPU in
each process that asks. The plugin is registered in every process of a server.
"""

from __future__ import annotations

import ctypes

_MAJOR, _MINOR = 75, 76  # cuda.h, CUdevice_attribute


def capability() -> tuple[int, int] | None:
    """Of the first GPU that CUDA_VISIBLE_DEVICES leaves. None without a driver or a GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        numbers.append(value.value)
    return numbers[0], numbers[1]

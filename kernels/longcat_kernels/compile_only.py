"""Triton without a GPU: kernels compile for one, and launching them does nothing.

    with compile_only(arch=90):
        route(logits, bias, ...)      # CPU tensors; what it returns is uninitialised memory

This is Triton's own path from a launch to a cubin, with a driver that has no device behind it. So
it compiles the variant that the same launch asks for on a real GPU, under the same key in Triton's
cache on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from longcat_kernels.dispatch import triton_everywhere


class _Utils:
    """Triton's helpers of a device. Loading a cubin gives no handle."""

    def __init__(self, shared_memory: int) -> None:
        self.shared_memory = shared_memory

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self.shared_memory}

    def load_binary(self, *args: Any) -> tuple[None, None, int, int, int]:
        """Returns module, function, registers, spills, and the most threads of a block."""
        return None, None, 0, 0, 1024


class _NoDevice:
    """What Triton asks a driver while it compiles and launches, for a CUDA architecture."""

    def __init__(self, arch: int, shared_memory: int) -> None:
        self.arch, self.utils = arch, _Utils(shared_memory)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """The device number. It is a key of Triton's caches in memory, which also remember a
        device's shared memory, so it differs from all real devices and for every size."""
        return -(self.arch << 32) - self.utils.shared_memory

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, *args: Any) -> Any:
        return lambda *args: None


@contextmanager
def compile_only(arch: int = 90, shared_memory: int = 1 << 30) -> Iterator[None]:
    """arch: compute capability without the dot, 90 for Hopper. A kernel that needs more than
    `shared_memory` bytes a block raises OutOfResources. Do not use it while kernels run."""
    from triton.runtime import driver

    driver.set_active(_NoDevice(arch, shared_memory))
    try:
        with triton_everywhere():
            yield
    finally:
        driver.set_active(None)  # Triton finds the machine's own driver when it needs one

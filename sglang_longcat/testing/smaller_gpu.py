"""Makes a GPU look like one with less memory: a large GPU measures what fits on a small one.

The process may take LONGCAT_GPU_MEMORY_MIB of the GPU. What reports the total reports this number,
and what reports free memory reports what is left of it. Everything that this process took counts:
weights, CUDA context, kernels and graphs. PyTorch's allocator gets what the rest leaves, so that an
allocation beyond it fails as on the small GPU. Nobody else may use the GPU meanwhile, because NVML
says how much memory all processes use together. Arithmetic units, bandwidth and the choice of
kernels stay those of the large GPU.

Without the variable this does nothing. Owns the two functions that it changes: SGLang's of the
capacity, and torch's of the free memory. SGLang and `ngram/embedding.py` size everything by them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_longcat import env

if TYPE_CHECKING:
    import torch

    Device = torch.device | str | int | None

MIB = 1 << 20
CAPACITY = "sglang.srt.utils.common.get_nvgpu_memory_capacity"  # in MiB, by nvidia-smi
FREE = "torch.cuda.memory.mem_get_info"
TARGETS = (CAPACITY, FREE)


def register() -> None:
    mib = env.gpu_memory_mib()
    if mib is None:
        return
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    gpu = SmallerGpu(mib * MIB)
    HookRegistry.register(CAPACITY, lambda: float(mib), HookType.REPLACE)
    HookRegistry.register(FREE, gpu.mem_get_info, HookType.AROUND)
    # Printed, not logged: `benchmarks/engine.py` reads this line, as that of the dummy routing.
    print(f"smaller GPU: {mib} MiB", flush=True)


class SmallerGpu:
    """capacity: bytes that each GPU seems to have."""

    def __init__(self, capacity: int) -> None:
        """Asks NVML and not CUDA, whose context would be memory that nobody counts."""
        import torch

        self.capacity = capacity
        self.before = [torch.cuda.device_memory_used(i) for i in range(torch.cuda.device_count())]

    def mem_get_info(
        self, real: Callable[[Device], tuple[int, int]], device: Device = None
    ) -> tuple[int, int]:
        """(free, total) in bytes. Every call brings the allocator's limit up to date."""
        import torch

        free, _ = real(device)
        index = _index(device)
        taken = torch.cuda.device_memory_used(index) - self.before[index]
        self._limit_allocator(index, taken)
        return max(0, min(free, self.capacity - taken)), self.capacity

    def _limit_allocator(self, index: int, taken: int) -> None:
        import torch

        outside = max(0, taken - torch.cuda.memory_reserved(index))  # not by PyTorch's allocator
        total = torch.cuda.get_device_properties(index).total_memory
        share = max(0, self.capacity - outside) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)


def _index(device: Device) -> int:
    import torch

    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return torch.cuda.current_device() if index is None else index

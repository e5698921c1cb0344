"""Which implementation of an op runs: Triton on CUDA tensors, plain torch elsewhere.

Tests set TRITON_INTERPRET=1 before importing triton and then call the Triton launchers on CPU
tensors directly; nothing here falls back silently from one to the other on CUDA.
"""

from __future__ import annotations

import functools

import torch


def use_triton(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def supports_pdl(tensor: torch.Tensor) -> bool:
    """Programmatic dependent launch: a kernel starts under the tail of the one before (Hopper)."""
    return tensor.is_cuda and _capability(tensor.device) >= (9, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)

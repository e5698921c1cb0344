"""Which implementation of an op runs: Triton on CUDA tensors, plain torch elsewhere.

Tests set TRITON_INTERPRET=1 before importing triton and then call the Triton launchers on CPU
tensors directly; nothing here falls back silently from one to the other on CUDA.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch

HOPPER = (9, 0)  # compute capability
_everywhere = False
_pdl = True


def use_triton(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda or _everywhere


def supports_pdl(tensor: torch.Tensor) -> bool:
    """Programmatic dependent launch: a kernel starts under the tail of the one before. From Hopper
    on, which is also what `compile_only` compiles for."""
    return _pdl and _capability(tensor) >= HOPPER


def is_hopper(tensor: torch.Tensor) -> bool:
    """Kernels with Hopper's own products run on these GPUs and on no later ones. `compile_only`
    compiles for them."""
    return _capability(tensor) == HOPPER


def allow_pdl(allowed: bool) -> None:
    """For this process, before its first launch. False, to debug or to see what it is worth: our
    kernels begin when the one before has ended."""
    global _pdl  # noqa: PLW0603 - one switch for the process
    _pdl = allowed


def pdl_options(tensor: torch.Tensor) -> dict[str, bool]:
    """Of a launch: the constexpr PDL, and with it the attribute, which the interpreter refuses."""
    return {"PDL": True, "launch_pdl": True} if supports_pdl(tensor) else {"PDL": False}


def _capability(tensor: torch.Tensor) -> tuple[int, int]:
    """Of the GPU that kernels on this tensor are for; of none below any."""
    if tensor.is_cuda:
        return _device_capability(tensor.device)
    return HOPPER if _everywhere else (0, 0)


@functools.cache
def _device_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@contextmanager
def triton_everywhere() -> Iterator[None]:
    """CPU tensors take Triton too. For `compile_only`, where launching a kernel runs nothing."""
    global _everywhere  # noqa: PLW0603 - one switch for the process, as the driver it goes with
    _everywhere = True
    try:
        yield
    finally:
        _everywhere = False

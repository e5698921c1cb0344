"""Which implementation of an op runs: Triton on CUDA tensors, plain torch elsewhere.

On CUDA nothing here falls back silently from Triton to torch. Tests that set TRITON_INTERPRET=1
before triton is imported replace `use_triton`, and so run the Triton launchers on CPU tensors.
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
    """Programmatic dependent launch: a kernel starts under the tail of the one before. GPUs have it
    from Hopper on, and `compile_only` compiles for Hopper."""
    return _pdl and _capability(tensor) >= HOPPER


def is_hopper(tensor: torch.Tensor) -> bool:
    """Kernels with wgmma run on Hopper GPUs and on no later ones. `compile_only` compiles for
    Hopper."""
    return _capability(tensor) == HOPPER


def allow_pdl(allowed: bool) -> None:
    """For this process, before its first launch. With False our kernels begin when the one before
    has ended, to debug or to measure what the overlap is worth."""
    global _pdl  # noqa: PLW0603 - one switch for the process
    _pdl = allowed


def pdl_options(tensor: torch.Tensor) -> dict[str, bool]:
    """Arguments of a launch: the constexpr PDL, and with it the launch attribute, which the
    interpreter refuses."""
    return {"PDL": True, "launch_pdl": True} if supports_pdl(tensor) else {"PDL": False}


def _capability(tensor: torch.Tensor) -> tuple[int, int]:
    """Compute capability of the GPU that kernels on this tensor are for; (0, 0) without one."""
    if tensor.is_cuda:
        return _device_capability(tensor.device)
    return HOPPER if _everywhere else (0, 0)


@functools.cache
def _device_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@contextmanager
def triton_everywhere() -> Iterator[None]:
    """CPU tensors take Triton too. For `compile_only`, where launching a kernel runs nothing."""
    global _everywhere  # noqa: PLW0603 - one switch for the process, as Triton's driver is
    _everywhere = True
    try:
        yield
    finally:
        _everywhere = False

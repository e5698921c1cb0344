"""Which implementation of an op runs: Triton on CUDA tensors, plain torch elsewhere.

Tests set TRITON_INTERPRET=1 before importing triton and then call the Triton launchers on CPU
tensors directly; nothing here falls back silently from one to the other on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_everywhere = False


def use_triton(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda or _everywhere


@contextmanager
def triton_everywhere() -> Iterator[None]:
    """CPU tensors take Triton too. For `compile_only`, where launching a kernel runs nothing."""
    global _everywhere  # noqa: PLW0603 - one switch for the process, as the driver it goes with
    _everywhere = True
    try:
        yield
    finally:
        _everywhere = False

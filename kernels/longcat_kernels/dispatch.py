"""Which implementation of an op runs: Triton on CUDA tensors, plain torch elsewhere.

Tests set TRITON_INTERPRET=1 before importing triton and then call the Triton launchers on CPU
tensors directly; nothing here falls back silently from one to the other on CUDA.
"""

from __future__ import annotations

import torch


def use_triton(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda

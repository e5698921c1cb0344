"""The projections in plain torch: the oracle of the kernel, and the CPU path."""

from __future__ import annotations

import torch

from longcat_kernels.packed_linear.marlin import Packed, widen


def linear(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    return (x.float() @ widen(weight).t()).to(x.dtype)


def swiglu_linear(x: torch.Tensor, weight: Packed) -> torch.Tensor:
    gate, up = (x.float() @ widen(weight).t()).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


OPS = {"linear": linear, "swiglu_linear": swiglu_linear}

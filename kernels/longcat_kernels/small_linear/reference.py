"""The small projections in plain torch: the oracle of the kernels, and the CPU path."""

from __future__ import annotations

import torch

from longcat_kernels.fp8_layout import Pair, quantise
from longcat_kernels.fp8_layout import widen as widen_pair
from longcat_kernels.small_linear.configs import BLOCK


def widen(weight: torch.Tensor, scales: torch.Tensor | None = None) -> torch.Tensor:
    """The values of a weight [N, K], fp32. scales: [ceil(N / 128), K / 128] of block FP8."""
    if scales is None:
        return weight.float()
    wide = scales.repeat_interleave(BLOCK, 0)[: weight.shape[0]].repeat_interleave(BLOCK, 1)
    return weight.float() * wide


def linear(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None = None
) -> torch.Tensor:
    return (x.float() @ widen(weight, scales).t()).to(x.dtype)


def swiglu_linear(
    x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor | None = None
) -> torch.Tensor:
    gate, up = (x.float() @ widen(weight, scales).t()).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def pair_linear(pair: Pair, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (widen_pair(pair) @ widen(weight, scales).t()).bfloat16()


def pair_swiglu_bf16(pair: Pair, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    gate, up = (widen_pair(pair) @ widen(weight, scales).t()).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).bfloat16()


def pair_swiglu(pair: Pair, weight: torch.Tensor, scales: torch.Tensor) -> Pair:
    return quantise(pair_swiglu_bf16(pair, weight, scales))


OPS = {"linear": linear, "swiglu_linear": swiglu_linear}

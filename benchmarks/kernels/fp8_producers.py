"""The kernels that write inputs of block-FP8 GEMMs: plain torch, and seeded inputs.

Two producers are library kernels, the residual add + RMSNorm and SwiGLU
(`sglang_longcat/layers/fp8_inputs.py`); tests and benchmarks compare them with the functions here.
The third is ours, `longcat_kernels.mla_prologue`, which has its own reference. The quantisation
itself is `longcat_kernels.fp8_layout`'s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.fp8_layout import GROUP
from longcat_kernels.lite import FFN, HIDDEN

BATCHES = (1, 2, 4, 8, 16, 30, 64, 128, 256, 512, 1024, 2048, 8192)


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The normed sum and the sum, both rounded once from fp32."""
    total = x.float() + residual.float()
    inverse = torch.rsqrt(total.square().mean(-1, keepdim=True) + eps)
    return (total * inverse * weight.float()).to(x.dtype), total.to(x.dtype)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, rounded once from fp32. gate_up: [T, 2 C]."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)


class Inputs(NamedTuple):
    """Arguments of residual add + RMSNorm, and of SwiGLU."""

    x: torch.Tensor  # [T, hidden]
    residual: torch.Tensor
    weight: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [T, 2 ffn]


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    hidden: int = HIDDEN,
    ffn: int = FFN,
) -> Inputs:
    """bf16. Groups differ in size by up to a factor of 100, so that a wrong group's scale shows."""
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random, device=device)

    def spread(width: int) -> torch.Tensor:
        size = 10 ** (2 * torch.rand(width // GROUP, generator=random, device=device) - 1)
        return size.repeat_interleave(GROUP)

    parts = (
        draw(tokens, hidden),
        draw(tokens, hidden),
        draw(hidden) * spread(hidden),
        draw(tokens, 2 * ffn) * spread(2 * ffn),
    )
    return Inputs(*(part.to(torch.bfloat16) for part in parts))


def bytes_normed(tokens: int, hidden: int = HIDDEN) -> int:
    """x and residual in; residual, normed, q and scales out; the weights once."""
    return tokens * (hidden * (2 + 2 + 2 + 2 + 1) + 4 * hidden // GROUP) + 2 * hidden


def bytes_swiglu(tokens: int, ffn: int = FFN) -> int:
    """gate and up in; q and scales out."""
    return tokens * (ffn * (2 + 2 + 1) + 4 * ffn // GROUP)

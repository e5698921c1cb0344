"""The three producers in plain torch: what the kernels are compared with."""

from __future__ import annotations

import torch

from longcat_kernels.fp8_inputs import FLOOR, GROUP, LARGEST, Pair, scale_rows, scales_of


def quantise(x: torch.Tensor) -> Pair:
    """x: [T, C], C a multiple of 128."""
    tokens, width = x.shape
    rows = scale_rows(tokens, width, x.device)
    groups = x.float().unflatten(1, (-1, GROUP))
    amax = groups.abs().amax(dim=2).clamp(min=FLOOR)
    scales_of(rows, tokens).copy_(amax / LARGEST)
    q = (groups * (LARGEST / amax)[:, :, None]).flatten(1)
    return q.to(torch.float8_e4m3fn), scales_of(rows, tokens)


def widen(pair: Pair) -> torch.Tensor:
    """[T, C] fp32: what a pair stands for."""
    q, scales = pair
    return q.float() * scales.repeat_interleave(GROUP, dim=1)


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

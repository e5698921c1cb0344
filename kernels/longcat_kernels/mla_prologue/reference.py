"""MLA's prologue in plain torch: the oracle of the kernels, and the CPU path."""

from __future__ import annotations

from typing import Any

import torch

from longcat_kernels import kv_rows
from longcat_kernels.fp8_layout import Pair, quantise


def norm_and_store(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    kv_weight: torch.Tensor,
    eps: float,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    slots: torch.Tensor,
    kv_buffer: torch.Tensor,
    neox: bool,
) -> torch.Tensor:
    widths = q_weight.shape[0], kv_weight.shape[0], cos_sin.shape[1]
    q, latent, key = qkv.split(widths, dim=-1)
    row = torch.cat((_norm(latent, kv_weight, eps), rotate(key, positions, cos_sin, neox)), dim=-1)
    if kv_rows.is_fp8(kv_buffer):
        row = kv_rows.pack(row, widths[1])
    # No boolean index: it would wait for the GPU, and a CUDA graph could not capture it.
    before = kv_buffer[slots, 0]
    kv_buffer[slots, 0] = torch.where((slots > 0)[:, None], row, before)
    return _norm(q, q_weight, eps)


def norm_quantise_and_store(*inputs: Any) -> Pair:
    return quantise(norm_and_store(*inputs))


def absorb_query(
    q: torch.Tensor,
    w_kc: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    neox: bool,
) -> torch.Tensor:
    nope, rope = q.split((w_kc.shape[1], cos_sin.shape[1]), dim=-1)
    absorbed = torch.bmm(nope.transpose(0, 1), w_kc).transpose(0, 1)
    return torch.cat((absorbed, rotate(rope, positions, cos_sin, neox)), dim=-1)


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def rotate(
    x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, neox: bool
) -> torch.Tensor:
    """x: [T, P] or [T, H, P]."""
    angles = cos_sin[positions].float()
    cos, sin = (angles if x.dim() == 2 else angles[:, None]).chunk(2, dim=-1)
    pairs, apart = ((2, -1), -2) if neox else ((-1, 2), -1)
    first, second = x.float().unflatten(-1, pairs).unbind(apart)
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=apart)
    return turned.flatten(-2).to(x.dtype)

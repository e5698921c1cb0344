"""Launches of MLA's prologue: grids, sizes and arguments. The kernels are in `_triton.py`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from longcat_kernels import kv_rows
from longcat_kernels.dispatch import pdl_options
from longcat_kernels.fp8_layout import GROUP, Pair, scale_rows, scales_of
from longcat_kernels.mla_prologue._triton import _absorb_query_kernel, _norm_and_store_kernel

# Tokens of a block: at least an MMA's rows, at most 64. Latent columns of a tile: with 32 heads and
# 512 columns there are 256 programs of 16 KiB of weights each, for 132 SMs.
LEAST_TOKENS, MOST_TOKENS, COLUMNS = 16, 64, 64


def norm_and_store(*inputs: Any) -> torch.Tensor:
    """inputs: the arguments of `_store` from qkv on."""
    qkv, q_weight = inputs[:2]
    out = torch.empty((qkv.shape[0], q_weight.shape[0]), dtype=qkv.dtype, device=qkv.device)
    _store(out, None, *inputs)
    return out


def norm_quantise_and_store(*inputs: Any) -> Pair:
    qkv, q_weight = inputs[:2]
    tokens, q = qkv.shape[0], q_weight.shape[0]
    out = torch.empty((tokens, q), dtype=torch.float8_e4m3fn, device=qkv.device)
    rows = scale_rows(tokens, q, qkv.device)
    _store(out, rows, *inputs)
    return out, scales_of(rows, tokens)


def _store(
    out: torch.Tensor,
    scales: torch.Tensor | None,
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    kv_weight: torch.Tensor,
    eps: float,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    slots: torch.Tensor,
    kv_buffer: torch.Tensor,
    neox: bool,
) -> None:
    tokens, width = qkv.shape
    q, latent = q_weight.shape[0], kv_weight.shape[0]
    rows = kv_rows.parts(kv_buffer, latent, cos_sin.shape[1])
    if tokens:
        _norm_and_store_kernel[(tokens, 2)](
            qkv,
            q_weight,
            kv_weight,
            eps,
            positions,
            cos_sin,
            slots,
            *rows,
            out,
            out if scales is None else scales,
            # torch may give a single row any stride, and stride 1 would be a variant of its own.
            qkv.stride(0) if tokens > 1 else width,
            rows.stride,
            0 if scales is None else scales.stride(0),
            Q=q,
            LATENT=latent,
            ROPE=_rope_width(cos_sin),
            NEOX=neox,
            Q_BLOCK=triton.next_power_of_2(q),
            LATENT_BLOCK=triton.next_power_of_2(latent),
            GROUP=0 if scales is None else GROUP,
            FP8=kv_rows.is_fp8(kv_buffer),
            num_warps=4,
            **pdl_options(qkv),
        )


def absorb_query(
    q: torch.Tensor,
    w_kc: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    neox: bool,
    *,
    fused: bool,
) -> torch.Tensor:
    """fused: the kernel makes the product; otherwise torch does, and the kernel only rotates."""
    (tokens, heads, width), (_, nope, latent) = q.shape, w_kc.shape
    rope = _rope_width(cos_sin)
    out = torch.empty((tokens, heads, latent + rope), dtype=q.dtype, device=q.device)
    if not fused:
        product = out[..., :latent].transpose(0, 1)
        torch.bmm(q[..., :nope].transpose(0, 1), w_kc, out=product)
    block = max(triton.next_power_of_2(tokens), LEAST_TOKENS) if fused else MOST_TOKENS
    block, tiles = min(block, MOST_TOKENS), triton.cdiv(latent, COLUMNS) if fused else 0
    if tokens:
        _absorb_query_kernel[(tiles + 1, heads, triton.cdiv(tokens, block))](
            q,
            w_kc,
            positions,
            cos_sin,
            out,
            tokens,
            q.stride(0) if tokens > 1 else heads * width,
            q.stride(1) if heads > 1 else width,
            *w_kc.stride(),
            out.stride(0),
            out.stride(1),
            NOPE=nope,
            LATENT=latent,
            ROPE=rope,
            NEOX=neox,
            NOPE_BLOCK=triton.next_power_of_2(nope),
            TOKENS=block,
            COLUMNS=COLUMNS,
            TILES=tiles,
            num_warps=4,
            **pdl_options(q),
        )
    return out


def _rope_width(cos_sin: torch.Tensor) -> int:
    width = cos_sin.shape[1]
    if width != triton.next_power_of_2(width) or cos_sin.stride(0) != width:
        raise ValueError(
            f"cos_sin {tuple(cos_sin.shape)} of strides {cos_sin.stride()}: expected contiguous "
            "rows of a power of two elements. Use the separate operators for this model."
        )
    return width

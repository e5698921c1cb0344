"""Joined keys in Triton: one program copies a few heads of one token, 16 bytes a thread."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK_HEADS = 16  # 16 heads x 192 bf16: 6 KiB a program of 4 warps


@triton.jit(do_not_specialize=["heads"])
def _join_kernel(
    nope_ptr,
    pe_ptr,
    out_ptr,
    heads,
    nope_token,
    nope_head,
    pe_token,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    HEADS: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    real = (head < heads)[:, None]
    n = tl.arange(0, NOPE)
    r = tl.arange(0, ROPE)
    out = out_ptr + (t * heads + head)[:, None] * (NOPE + ROPE)
    own = tl.load(nope_ptr + t * nope_token + head[:, None] * nope_head + n[None, :], mask=real)
    shared = tl.load(pe_ptr + t * pe_token + r)
    tl.store(out + n[None, :], own, mask=real)
    tl.store(out + NOPE + r[None, :], tl.broadcast_to(shared[None, :], [HEADS, ROPE]), mask=real)


def join_keys(k_nope: torch.Tensor, k_pe: torch.Tensor) -> torch.Tensor:
    tokens, heads, nope = k_nope.shape
    rope = k_pe.shape[-1]
    out = k_nope.new_empty(tokens, heads, nope + rope)
    if tokens:
        _join_kernel[(tokens, triton.cdiv(heads, BLOCK_HEADS))](
            k_nope,
            k_pe,
            out,
            heads,
            k_nope.stride(0),
            k_nope.stride(1),
            k_pe.stride(0),
            NOPE=nope,
            ROPE=rope,
            HEADS=BLOCK_HEADS,
            num_warps=4,
        )
    return out

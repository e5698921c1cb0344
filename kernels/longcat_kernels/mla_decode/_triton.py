"""MLA decode in Triton: one program per query token and split of its keys, then a combination.

A program keeps all heads of one token (32 rows) and walks its split in blocks of keys, so that a
latent is loaded once for both products. Splits are as many as fill the GPU; their length follows
the token's position, which a captured graph does not know. A second launch adds the splits up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options

LOG2_E = 1.4426950408889634
BLOCK_KEYS = 64  # 64 x 576 bf16: 72 KiB, two of which are in flight
PROGRAMS = 132  # one per SM of a Hopper GPU; 264 programs took 1.3 times as long at batch 1
MOST_SPLITS = 64
STAGES, WARPS = 3, 8  # best of 28 combinations up to batch 8 (H200); 4 warps win beyond
COLUMNS = 128  # of a program that combines


@triton.jit(
    do_not_specialize=["heads", "splits"],
    do_not_specialize_on_alignment=["requests_ptr", "positions_ptr", "page_stride"],
)
def _split_kernel(
    q_nope_ptr,
    q_pe_ptr,
    latents_ptr,
    pages_ptr,
    requests_ptr,
    positions_ptr,
    partial_ptr,  # [T, splits, H, RANK] fp32
    lse_ptr,  # [T, splits, H] fp32, base 2; -inf: nothing in this split
    scale,
    heads,
    splits,
    nope_token,
    nope_head,
    pe_token,
    pe_head,
    latent_stride,
    page_stride,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,  # rounded up to a power of two
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    KEYS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    t = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    head = tl.arange(0, HEADS)
    real = head < heads
    length = tl.load(positions_ptr + t).to(tl.int32) + 1
    share = tl.cdiv(tl.cdiv(length, KEYS), splits) * KEYS
    begin = split * share
    end = min(length, begin + share)
    at = (t * splits + split) * heads + head
    if begin >= length:
        tl.store(lse_ptr + at, tl.full([HEADS], -float("inf"), tl.float32), mask=real)
        return
    rank = tl.arange(0, RANK)
    rope = tl.arange(0, ROPE)
    nope = q_nope_ptr + t * nope_token + head[:, None] * nope_head + rank[None, :]
    pe = q_pe_ptr + t * pe_token + head[:, None] * pe_head + rope[None, :]
    q_nope = tl.load(nope, mask=real[:, None], other=0.0)
    q_pe = tl.load(pe, mask=real[:, None], other=0.0)
    page = pages_ptr + tl.load(requests_ptr + t // WIDTH).to(tl.int64) * page_stride
    top = tl.full([HEADS], -float("inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    out = tl.zeros([HEADS, RANK], tl.float32)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        live = key < end
        row = tl.load(page + key, mask=live, other=0).to(tl.int64) * latent_stride
        latent = latents_ptr + row[:, None]
        c = tl.load(latent + rank[None, :], mask=live[:, None], other=0.0)
        r = tl.load(latent + RANK + rope[None, :], mask=live[:, None], other=0.0)
        score = tl.dot(q_nope, tl.trans(c)) + tl.dot(q_pe, tl.trans(r))
        score = tl.where(live[None, :], score * scale, -float("inf"))
        highest = tl.maximum(top, tl.max(score, axis=1))
        shrink = tl.exp2(top - highest)
        weight = tl.exp2(score - highest[:, None])
        total = total * shrink + tl.sum(weight, axis=1)
        out = out * shrink[:, None] + tl.dot(weight.to(c.dtype), c)
        top = highest
    target = partial_ptr + at[:, None] * RANK + rank[None, :]
    tl.store(target, out / total[:, None], mask=real[:, None])
    tl.store(lse_ptr + at, top + tl.log2(total), mask=real)


@triton.jit(do_not_specialize=["heads", "splits"])
def _combine_kernel(
    partial_ptr,
    lse_ptr,
    out_ptr,
    heads,
    splits,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,  # splits, rounded up to a power of two
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)  # token * heads + head
    t = row // heads
    head = row % heads
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.arange(0, SPLITS)
    at = (t * splits + split) * heads + head
    lse = tl.load(lse_ptr + at, mask=split < splits, other=-float("inf"))
    used = lse > -float("inf")
    weight = tl.exp2(lse - tl.max(lse, axis=0))
    weight = weight / tl.sum(weight, axis=0)
    part = tl.load(
        partial_ptr + at[:, None] * RANK + column[None, :], mask=used[:, None], other=0.0
    )
    out = tl.sum(part * weight[:, None], axis=0)
    tl.store(out_ptr + row * RANK + column, out.to(out_ptr.dtype.element_ty))


def splits_for(tokens: int) -> int:
    return max(1, min(MOST_SPLITS, PROGRAMS // tokens))


def mla_decode(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    latents: torch.Tensor,
    pages: torch.Tensor,
    requests: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    width: int,
) -> torch.Tensor:
    tokens, heads, rank = q_nope.shape
    out = torch.empty((tokens, heads, rank), dtype=q_nope.dtype, device=q_nope.device)
    if not tokens:
        return out
    splits = splits_for(tokens)
    partial = torch.empty((tokens, splits, heads, rank), dtype=torch.float32, device=out.device)
    lse = torch.empty((tokens, splits, heads), dtype=torch.float32, device=out.device)
    options = pdl_options(q_nope)
    _split_kernel[(tokens, splits)](
        q_nope,
        q_pe,
        latents,
        pages,
        requests,
        positions,
        partial,
        lse,
        scale * LOG2_E,
        heads,
        splits,
        q_nope.stride(0),
        q_nope.stride(1),
        q_pe.stride(0),
        q_pe.stride(1),
        latents.stride(0),
        pages.stride(0),
        WIDTH=width,
        HEADS=max(16, triton.next_power_of_2(heads)),
        RANK=rank,
        ROPE=q_pe.shape[-1],
        KEYS=BLOCK_KEYS,
        num_warps=WARPS,
        num_stages=STAGES,
        **options,
    )
    columns = min(COLUMNS, rank)
    _combine_kernel[(tokens * heads, rank // columns)](
        partial,
        lse,
        out,
        heads,
        splits,
        RANK=rank,
        SPLITS=triton.next_power_of_2(splits),
        COLUMNS=columns,
        num_warps=4,
        **options,
    )
    return out

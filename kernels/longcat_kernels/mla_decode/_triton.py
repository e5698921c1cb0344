"""MLA decode in Triton: one program per query token and split of its keys, then a combination.

A program keeps all heads of one token and walks its split in blocks of keys, so that a latent is
loaded once for both products. Keys, then rank, are their rows and heads (32) the columns: Hopper's
wgmma takes 64 rows or more, and reads the latents where they were loaded to. Splits are as many as
fill the GPU; their length follows the token's position, which a captured graph does not know, so
short contexts leave some empty. A second launch adds up those in use, in their order, and may
multiply with the value projection: its weights are asked for before `gdc_wait`, under the tail of
the first. The first asks for its first block of keys there, under the kernel that makes the
queries: 1.5 us less, of 12.5 at batch 1 with 4,096 keys.

Between the two a split's latent is bf16: an average over splits rounds less than the result's own
rounding does, and what the second launch reads, 64 of them a head at 4,096 keys, is half as much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options

LOG2_E = 1.4426950408889634
BLOCK_KEYS = 64  # 64 x 576 bf16: 72 KiB
PROGRAMS = 132  # one per SM of a Hopper GPU; 264 programs took 1.3 times as long at batch 1
STAGES, WARPS = 3, 8  # two blocks of 64 fit behind the first
CHUNK, COLUMNS, COMBINE_WARPS = 32, 128, 4  # splits at a time and columns of a program
# With the value projection a program needs all columns of its head's latent: 1 KB a split. Half of
# a head's value columns each read the 2 MB of 64 splits twice, quarters would four times.
VALUE_CHUNK, VALUE_COLUMNS, VALUE_WARPS = 16, 64, 8
AHEAD = 3  # chunks in flight


@triton.jit
def _mean(
    partial_ptr,
    lse_ptr,
    row,  # token * heads + head
    splits,
    column,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,  # the most there are, rounded up to a power of two
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Columns of a head's latent: the mean of its splits' latents, weighted with 2 ** lse."""
    first = row * splits
    split = tl.arange(0, SPLITS)
    lse = tl.load(lse_ptr + first + split, mask=split < splits, other=-float("inf"))
    used = tl.sum((lse > -float("inf")).to(tl.int32), axis=0)  # the first ones
    top = tl.max(lse, axis=0)
    total = tl.sum(tl.exp2(lse - top), axis=0)
    out = tl.zeros([CHUNK, column.shape[0]], tl.float32)
    for start in tl.range(0, used, CHUNK, num_stages=AHEAD):
        some = start + tl.arange(0, CHUNK)
        live = some < used
        weight = tl.exp2(tl.load(lse_ptr + first + some, mask=live, other=-float("inf")) - top)
        cells = partial_ptr + (first + some)[:, None] * RANK + column[None, :]
        latent = tl.load(cells, mask=live[:, None], other=0.0)
        out += latent.to(tl.float32) * weight[:, None]
    return tl.sum(out, axis=0) / total


@triton.jit
def _block(
    page,
    start,
    end,
    latents_ptr,
    latent_stride,
    KEYS: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
):
    """Latents and rope parts of KEYS keys from `start` on, zeros from `end` on; which are live."""
    key = start + tl.arange(0, KEYS)
    live = key < end
    row = tl.load(page + key, mask=live, other=0).to(tl.int64) * latent_stride
    cells = latents_ptr + row[:, None]
    c = tl.load(cells + tl.arange(0, RANK)[None, :], mask=live[:, None], other=0.0)
    r = tl.load(cells + RANK + tl.arange(0, ROPE)[None, :], mask=live[:, None], other=0.0)
    return c, r, live


@triton.jit
def _add(c, r, live, q_nope, q_pe, scale, top, total, out):
    """What the keys of a block change: their highest score, sum of weights and weighted latents."""
    score = tl.dot(c, tl.trans(q_nope)) + tl.dot(r, tl.trans(q_pe))
    score = tl.where(live[:, None], score * scale, -float("inf"))
    highest = tl.maximum(top, tl.max(score, axis=0))
    shrink = tl.exp2(top - highest)
    weight = tl.exp2(score - highest[None, :])
    total = total * shrink + tl.sum(weight, axis=0)
    out = out * shrink[None, :] + tl.dot(tl.trans(c), weight.to(c.dtype))
    return highest, total, out


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
    partial_ptr,  # [T, H, splits, RANK]
    lse_ptr,  # [T, H, splits] fp32, base 2; -inf: no keys in this split, nor a partial result
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
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    t = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    head = tl.arange(0, HEADS)
    real = head < heads
    length = tl.load(positions_ptr + t).to(tl.int32) + 1
    request = tl.load(requests_ptr + t // WIDTH).to(tl.int64)  # asked for while length is awaited
    share = tl.cdiv(tl.cdiv(length, KEYS), splits) * KEYS
    begin = split * share
    end = min(length, begin + share)
    page = pages_ptr + request * page_stride
    c, r, live = _block(page, begin, end, latents_ptr, latent_stride, KEYS, RANK, ROPE)
    if PDL:
        tl.extra.cuda.gdc_wait()
    at = (t * heads + head) * splits + split
    if begin >= length:
        tl.store(lse_ptr + at, tl.full([HEADS], -float("inf"), tl.float32), mask=real)
        return
    nope = q_nope_ptr + t * nope_token + head[:, None] * nope_head + tl.arange(0, RANK)[None, :]
    pe = q_pe_ptr + t * pe_token + head[:, None] * pe_head + tl.arange(0, ROPE)[None, :]
    q_nope = tl.load(nope, mask=real[:, None], other=0.0)
    q_pe = tl.load(pe, mask=real[:, None], other=0.0)
    top = tl.full([HEADS], -float("inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    out = tl.zeros([RANK, HEADS], tl.float32)
    top, total, out = _add(c, r, live, q_nope, q_pe, scale, top, total, out)
    for start in tl.range(begin + KEYS, end, KEYS, num_stages=STAGES):
        c, r, live = _block(page, start, end, latents_ptr, latent_stride, KEYS, RANK, ROPE)
        top, total, out = _add(c, r, live, q_nope, q_pe, scale, top, total, out)
    target = partial_ptr + at[None, :] * RANK + tl.arange(0, RANK)[:, None]
    out = (out / total[None, :]).to(partial_ptr.dtype.element_ty)
    tl.store(target, out, mask=real[None, :])
    tl.store(lse_ptr + at, top + tl.log2(total), mask=real)


@triton.jit(do_not_specialize=["splits"])
def _combine_kernel(
    partial_ptr,
    lse_ptr,
    out_ptr,
    splits,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    out = _mean(partial_ptr, lse_ptr, row, splits, column, RANK, SPLITS, CHUNK, AHEAD)
    tl.store(out_ptr + row * RANK + column, out.to(out_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["heads", "splits"])
def _combine_values_kernel(
    partial_ptr,
    lse_ptr,
    weight_ptr,  # [H, RANK, VALUES] of any strides
    out_ptr,
    heads,
    splits,
    weight_head,
    weight_rank,
    weight_column,
    VALUES: tl.constexpr,
    RANK: tl.constexpr,
    SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    cells = weight_ptr + (row % heads) * weight_head + rank[:, None] * weight_rank
    cells += column[None, :] * weight_column
    weight = tl.load(cells, mask=(column < VALUES)[None, :], other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    latent = _mean(partial_ptr, lse_ptr, row, splits, rank, RANK, SPLITS, CHUNK, AHEAD)
    # Rounded as the latent that a launch of its own stores.
    latent = latent.to(weight.dtype).to(tl.float32)
    out = tl.sum(latent[:, None] * weight.to(tl.float32), axis=0)
    target = out_ptr + row * VALUES + column
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=column < VALUES)


class Partial(NamedTuple):
    """What the splits' programs leave behind, and how the next launch begins."""

    latents: torch.Tensor
    lse: torch.Tensor
    options: dict[str, Any]


def mla_decode(*inputs: torch.Tensor, scale: float, width: int) -> torch.Tensor:
    """The latents [T, H, C]; `inputs` as of the public function."""
    tokens, heads, rank = inputs[0].shape
    out = inputs[0].new_empty((tokens, heads, rank))
    if not tokens:
        return out
    partial = _attend(*inputs, scale=scale, width=width)
    columns = min(COLUMNS, rank)
    _combine_kernel[(tokens * heads, rank // columns)](
        *partial[:2],
        out,
        partial.lse.shape[-1],
        CHUNK=CHUNK,
        COLUMNS=columns,
        num_warps=COMBINE_WARPS,
        **partial.options,
    )
    return out


def decode_values(
    *inputs: torch.Tensor, scale: float, width: int, w_vc: torch.Tensor
) -> torch.Tensor:
    """The values [T, H, V] of w_vc [H, C, V], which no kernel just before may have written."""
    tokens, heads = inputs[0].shape[:2]
    values = w_vc.shape[-1]
    out = inputs[0].new_empty((tokens, heads, values))
    if not tokens:
        return out
    partial = _attend(*inputs, scale=scale, width=width)
    columns = min(VALUE_COLUMNS, triton.next_power_of_2(values))
    _combine_values_kernel[(tokens * heads, triton.cdiv(values, columns))](
        *partial[:2],
        w_vc,
        out,
        heads,
        partial.lse.shape[-1],
        *w_vc.stride(),
        VALUES=values,
        CHUNK=VALUE_CHUNK,
        COLUMNS=columns,
        num_warps=VALUE_WARPS,
        **partial.options,
    )
    return out


def splits_for(tokens: int) -> int:
    return max(1, PROGRAMS // tokens)


def _attend(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    latents: torch.Tensor,
    pages: torch.Tensor,
    requests: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    width: int,
) -> Partial:
    tokens, heads, rank = q_nope.shape
    splits = splits_for(tokens)
    partial = q_nope.new_empty((tokens, heads, splits, rank))
    lse = q_nope.new_empty((tokens, heads, splits), dtype=torch.float32)
    launch = {"RANK": rank, **pdl_options(q_nope)}
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
        ROPE=q_pe.shape[-1],
        KEYS=BLOCK_KEYS,
        STAGES=STAGES,
        num_warps=WARPS,
        **launch,
    )
    most = triton.next_power_of_2(splits_for(1))
    return Partial(partial, lse, {**launch, "SPLITS": most, "AHEAD": AHEAD})

"""The first launch of MLA decode on Hopper, in Gluon: keys are loaded while others are multiplied.

Triton waits for a block of keys, multiplies, and only then asks for the next, since it has to load
the rows' numbers first; and with eight warps it multiplies 64 keys with all heads twice. Here two
blocks of 64 keys lie in shared memory, each asked for as soon as the one before in its place is
done with, and each of two warp groups scores half of the heads. The first two blocks are asked for
before `gdc_wait`, under the kernel that makes the queries. Of the 5.7 us that Triton's kernel took
for a block of a long context, loads included, 2.5 to 2.9 are left: 3.2 to 4.0 TB/s on an H200. Owns
this kernel; shares of keys, partial results and the launch are its neighbours', as is the kernel
that does the same on other GPUs.
"""

from __future__ import annotations

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from longcat_kernels.mla_decode._triton import share_of

_MOST_HEADS = 32  # beside two blocks of keys: 36 KiB of queries
_RANK, _ROPE = 512, 64  # others may work, and have not run


def fits(q_nope: torch.Tensor, q_pe: torch.Tensor, latents: torch.Tensor) -> bool:
    """Whether these are sizes that it was made for, and rows can be loaded by 16 bytes."""
    aligned = latents.data_ptr() % 16 == 0 and latents.stride(0) % 16 == 0
    widths = q_nope.shape[-1], q_pe.shape[-1]
    return q_nope.shape[1] <= _MOST_HEADS and widths == (_RANK, _ROPE) and aligned


@gluon.jit
def _rows(page, c_key, r_key, end):
    """Rows of the keys before `end`, in the layouts of both loads."""
    c_rows = gl.load(page + c_key, mask=c_key < end, other=0)
    return c_rows, gl.load(page + r_key, mask=r_key < end, other=0)


@gluon.jit
def _ask(
    latents_ptr,
    latent_stride,
    page,
    c_key,
    r_key,
    end,
    c_rows,
    r_rows,
    c_column,
    r_column,
    c_block,
    r_block,
):
    """Latents and rope parts of the rows into shared memory, zeros from key `end` on. Returns keys
    and rows of the block behind."""
    KEYS: gl.constexpr = c_block.shape[0]
    c = latents_ptr + c_rows.to(gl.int64)[:, None] * latent_stride + c_column[None, :]
    r = latents_ptr + r_rows.to(gl.int64)[:, None] * latent_stride + r_column[None, :]
    async_copy.async_load(c_block, c, mask=(c_key < end)[:, None])
    async_copy.async_load(r_block, r, mask=(r_key < end)[:, None])
    async_copy.commit_group()
    c_key += KEYS
    r_key += KEYS
    c_rows, r_rows = _rows(page, c_key, r_key, end)
    return c_key, r_key, c_rows, r_rows


@gluon.jit(
    do_not_specialize=["tokens", "heads", "programs"],
    do_not_specialize_on_alignment=["requests_ptr", "positions_ptr", "page_stride"],
)
def _hopper_kernel(
    q_nope_ptr,
    q_pe_ptr,
    latents_ptr,
    pages_ptr,
    requests_ptr,
    positions_ptr,
    partial_ptr,  # [programs, H, RANK]
    lse_ptr,  # [H, programs] fp32, base 2; -inf: no keys in this share, nor a partial result
    scale,
    tokens,
    heads,
    programs,
    nope_token,
    nope_head,
    pe_token,
    pe_head,
    latent_stride,
    page_stride,
    WIDTH: gl.constexpr,
    TOKENS: gl.constexpr,
    HEADS: gl.constexpr,  # 16 or 32
    RANK: gl.constexpr,
    ROPE: gl.constexpr,
    KEYS: gl.constexpr,
    PDL: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    BLOCKS: gl.constexpr = 2
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, HEADS // 2, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEADS, 16])
    LATENT: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [WARPS, 1], [1, 0])
    ANGLE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    STORE: gl.constexpr = gl.BlockedLayout([8, 1], [32, 1], [1, WARPS], [0, 1])
    VECTOR: gl.constexpr = gl.BlockedLayout([TOKENS // 32], [32], [WARPS], [0])
    LINES: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    WEIGHTS: gl.constexpr = gl.NVMMASharedLayout(2 * HEADS, 16, 2)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    p = gl.program_id(0)
    token = gl.arange(0, TOKENS, layout=VECTOR)
    t, begin, end = share_of(positions_ptr, p, token, tokens, programs, KEYS)
    if t >= tokens:
        return
    request = gl.load(requests_ptr + t // WIDTH).to(gl.int64)
    page = pages_ptr + request * page_stride

    c_blocks = gl.allocate_shared_memory(gl.bfloat16, [BLOCKS, KEYS, RANK], LINES)
    r_blocks = gl.allocate_shared_memory(gl.bfloat16, [BLOCKS, KEYS, ROPE], LINES)
    weights = gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], WEIGHTS)
    c_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, LATENT))
    r_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, ANGLE))
    c_column = gl.arange(0, RANK, layout=gl.SliceLayout(0, LATENT))
    r_column = RANK + gl.arange(0, ROPE, layout=gl.SliceLayout(0, ANGLE))
    c_rows, r_rows = _rows(page, c_key, r_key, end)
    for i in gl.static_range(BLOCKS):
        c_key, r_key, c_rows, r_rows = _ask(
            *(latents_ptr, latent_stride, page, c_key, r_key, end, c_rows, r_rows),
            *(c_column, r_column, c_blocks.index(i), r_blocks.index(i)),
        )
    if PDL:
        tl.extra.cuda.gdc_wait()
    t = t.to(gl.int64)
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(1, LATENT))
    q_nope = q_nope_ptr + t * nope_token + head[:, None] * nope_head + c_column[None, :]
    nope = gl.load(q_nope, mask=(head < heads)[:, None], other=0.0)
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(1, ANGLE))
    q_pe = q_pe_ptr + t * pe_token + head[:, None] * pe_head + (r_column - RANK)[None, :]
    pe = gl.load(q_pe, mask=(head < heads)[:, None], other=0.0)
    nope = gl.allocate_shared_memory(gl.bfloat16, [HEADS, RANK], LINES, nope)
    pe = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ROPE], LINES, pe)

    key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, SCORES))
    top = gl.full([HEADS], -float("inf"), gl.float32, gl.SliceLayout(0, SCORES))
    total = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
    out = gl.zeros([RANK, HEADS], gl.float32, OUT)
    for i in range(gl.cdiv(end - begin, KEYS)):
        c = c_blocks.index(i % BLOCKS)
        r = r_blocks.index(i % BLOCKS)
        async_copy.wait_group(BLOCKS - 1)
        fence_async_shared()
        gl.barrier()
        score = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
        score = warpgroup_mma(c, nope.permute((1, 0)), score, is_async=True)
        score = warpgroup_mma(r, pe.permute((1, 0)), score, is_async=True)
        score = warpgroup_mma_wait(0, deps=[score])
        score = gl.where((key < end)[:, None], score * scale, -float("inf"))
        highest = gl.maximum(top, gl.max(score, axis=0))
        shrink = gl.exp2(top - highest)
        weight = gl.exp2(score - highest[None, :])
        total = total * shrink[None, :] + weight
        weights.store(weight.to(gl.bfloat16))
        out = out * gl.convert_layout(shrink, gl.SliceLayout(0, OUT))[None, :]
        fence_async_shared()
        gl.barrier()
        out = warpgroup_mma(c.permute((1, 0)), weights, out, is_async=True)
        out = warpgroup_mma_wait(0, deps=[out])
        gl.barrier()
        c_key, r_key, c_rows, r_rows = _ask(
            *(latents_ptr, latent_stride, page, c_key, r_key, end, c_rows, r_rows),
            *(c_column, r_column, c, r),
        )
        top = highest
        key += KEYS
    async_copy.wait_group(0)
    total = gl.sum(total, axis=0)
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(0, SCORES))
    gl.store(lse_ptr + head * programs + p, top + gl.log2(total), mask=head < heads)
    total = gl.where(total > 0.0, total, 1.0)  # of an empty share
    out = out / gl.convert_layout(total, gl.SliceLayout(0, OUT))[None, :]
    out = gl.convert_layout(out.to(gl.bfloat16), STORE)
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(0, STORE))
    rank = gl.arange(0, RANK, layout=gl.SliceLayout(1, STORE))
    at = (p * heads + head)[None, :] * RANK + rank[:, None]
    gl.store(partial_ptr + at, out, mask=(head < heads)[None, :])

"""The first launch of MLA decode on Hopper, in Gluon: it loads keys while it multiplies others.

Triton's kernel (`_triton._split_kernel`, for other GPUs) waits for a block of keys, multiplies, and
only then asks for the next, because it has to load the numbers of the rows first; and with eight
warps it multiplies 64 keys with all heads twice. Of the 5.7 us that it took for a block of a long
context, loads included, 2.5 to 2.9 us are left here: 3.2 to 4.0 TB/s on an H200.

Owns this kernel. `_triton.py` has the division of keys into shares and the second launch; launch.py
has the arguments.
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

_MOST_HEADS = 32  # 36 KiB of queries fit into shared memory beside two blocks of keys
_RANK, _ROPE = 512, 64  # other widths may work, but have never run


def supports(q_nope: torch.Tensor, q_pe: torch.Tensor, latents: torch.Tensor) -> bool:
    """Whether the kernel can run: it has the sizes that it was made for, and loads of 16 bytes can
    read the rows."""
    aligned = latents.data_ptr() % 16 == 0 and latents.stride(0) % 16 == 0
    widths = q_nope.shape[-1], q_pe.shape[-1]
    return q_nope.shape[1] <= _MOST_HEADS and widths == (_RANK, _ROPE) and aligned


@gluon.jit
def _rows(page, c_key, r_key, end):
    """The rows of `latents` that keys before `end` have, in the layouts of both loads."""
    c_rows = gl.load(page + c_key, mask=c_key < end, other=0)
    return c_rows, gl.load(page + r_key, mask=r_key < end, other=0)


@gluon.jit
def _ask(
    latents_ptr,
    ropes_ptr,
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
    """Starts the copy of the rows' latents and rope parts into shared memory, zeros from key `end`
    on. Returns the keys and rows of the next block: a copy needs the numbers of its rows, which are
    therefore loaded one block ahead."""
    KEYS: gl.constexpr = c_block.shape[0]
    c = latents_ptr + c_rows.to(gl.int64)[:, None] * latent_stride + c_column[None, :]
    r = ropes_ptr + r_rows.to(gl.int64)[:, None] * latent_stride + r_column[None, :]
    async_copy.async_load(c_block, c, mask=(c_key < end)[:, None])
    async_copy.async_load(r_block, r, mask=(r_key < end)[:, None])
    async_copy.commit_group()
    c_key += KEYS
    r_key += KEYS
    c_rows, r_rows = _rows(page, c_key, r_key, end)
    return c_key, r_key, c_rows, r_rows


@gluon.jit
def _queries(
    q_ptr,
    t,
    token_stride,
    head_stride,
    heads,
    column,
    HEADS: gl.constexpr,
    LAYOUT: gl.constexpr,
):
    """Token t's queries, [HEADS, columns], zeros from head `heads` on."""
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(1, LAYOUT))
    cells = q_ptr + t * token_stride + head[:, None] * head_stride + column[None, :]
    return gl.load(cells, mask=(head < heads)[:, None], other=0.0)


@gluon.jit
def _weigh(score, top):
    """The highest score of each head with this block's, the factor by which sums so far shrink, and
    the weights of this block's keys. In base 2; score: [KEYS, HEADS], top: [HEADS]."""
    highest = gl.maximum(top, gl.max(score, axis=0))
    return highest, gl.exp2(top - highest), gl.exp2(score - highest[None, :])


@gluon.jit
def _store_share(
    partial_ptr,
    lse_ptr,
    out,
    top,
    total,
    p,
    heads,
    programs,
    SCORES: gl.constexpr,
    OUT: gl.constexpr,
    STORE: gl.constexpr,
):
    """The share's log-sum-exp, -inf for an empty share, and its latent in bf16: the mean over
    shares rounds less than the result's own rounding does."""
    RANK: gl.constexpr = out.shape[0]
    HEADS: gl.constexpr = out.shape[1]
    total = gl.sum(total, axis=0)
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(0, SCORES))
    gl.store(lse_ptr + head * programs + p, top + gl.log2(total), mask=head < heads)
    total = gl.where(total > 0.0, total, 1.0)  # an empty share divides 0 by 1
    out = out / gl.convert_layout(total, gl.SliceLayout(0, OUT))[None, :]
    out = gl.convert_layout(out.to(gl.bfloat16), STORE)
    head = gl.arange(0, HEADS, layout=gl.SliceLayout(0, STORE))
    rank = gl.arange(0, RANK, layout=gl.SliceLayout(1, STORE))
    at = (p * heads + head)[None, :] * RANK + rank[:, None]
    gl.store(partial_ptr + at, out, mask=(head < heads)[None, :])


@gluon.jit(
    do_not_specialize=["tokens", "heads", "programs"],
    do_not_specialize_on_alignment=["requests_ptr", "positions_ptr", "page_stride"],
)
def _hopper_kernel(
    q_nope_ptr,
    q_pe_ptr,
    latents_ptr,
    ropes_ptr,
    scales_ptr,  # nobody reads it: bf16 rows have no scales
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
    FP8: gl.constexpr,  # False here
    PDL: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    BLOCKS: gl.constexpr = 2  # of keys, in shared memory
    # SCORES: two warp groups, each of which multiplies 64 keys with half of the heads. OUT: the
    # warps share the rank. LATENT, ANGLE: loads of 16 bytes along the columns of a row.
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, HEADS // 2, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEADS, 16])
    LATENT: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [WARPS, 1], [1, 0])
    ANGLE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    STORE: gl.constexpr = gl.BlockedLayout([8, 1], [32, 1], [1, WARPS], [0, 1])
    VECTOR: gl.constexpr = gl.BlockedLayout([TOKENS // 32], [32], [WARPS], [0])
    LINES: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    WEIGHTS: gl.constexpr = gl.NVMMASharedLayout(2 * HEADS, 16, 2)
    # The second launch may start at once: it waits for this one before it reads a result.
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    p = gl.program_id(0)
    token = gl.arange(0, TOKENS, layout=VECTOR)
    t, begin, end = share_of(positions_ptr, p, token, tokens, programs, KEYS)
    if t >= tokens:
        return
    request = gl.load(requests_ptr + t // WIDTH).to(gl.int64)
    page = pages_ptr + request * page_stride

    # Ask for the first two blocks of keys before the wait, under the kernel that makes the queries:
    # that kernel writes neither keys nor positions.
    c_blocks = gl.allocate_shared_memory(gl.bfloat16, [BLOCKS, KEYS, RANK], LINES)
    r_blocks = gl.allocate_shared_memory(gl.bfloat16, [BLOCKS, KEYS, ROPE], LINES)
    weights = gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], WEIGHTS)
    c_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, LATENT))
    r_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, ANGLE))
    c_column = gl.arange(0, RANK, layout=gl.SliceLayout(0, LATENT))
    r_column = gl.arange(0, ROPE, layout=gl.SliceLayout(0, ANGLE))
    c_rows, r_rows = _rows(page, c_key, r_key, end)
    for i in gl.static_range(BLOCKS):
        c_key, r_key, c_rows, r_rows = _ask(
            *(latents_ptr, ropes_ptr, latent_stride, page, c_key, r_key, end, c_rows, r_rows),
            *(c_column, r_column, c_blocks.index(i), r_blocks.index(i)),
        )
    if PDL:
        tl.extra.cuda.gdc_wait()
    # The queries of token t go through registers into shared memory: wgmma reads both operands
    # from there.
    t = t.to(gl.int64)
    nope = _queries(q_nope_ptr, t, nope_token, nope_head, heads, c_column, HEADS, LATENT)
    pe = _queries(q_pe_ptr, t, pe_token, pe_head, heads, r_column, HEADS, ANGLE)
    nope = gl.allocate_shared_memory(gl.bfloat16, [HEADS, RANK], LINES, nope)
    pe = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ROPE], LINES, pe)

    # Softmax while walking: the highest score of each head so far, the weights relative to it, and
    # the sum of weighted latents. `total` is summed over keys only at the end: each thread adds up
    # its own elements until then.
    key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, SCORES))
    top = gl.full([HEADS], -float("inf"), gl.float32, gl.SliceLayout(0, SCORES))
    total = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
    out = gl.zeros([RANK, HEADS], gl.float32, OUT)
    for i in range(gl.cdiv(end - begin, KEYS)):
        c = c_blocks.index(i % BLOCKS)
        r = r_blocks.index(i % BLOCKS)
        # This block has arrived when at most one younger copy is left. The fence and the barrier
        # let wgmma of all warps see what the threads have copied.
        async_copy.wait_group(BLOCKS - 1)
        fence_async_shared()
        gl.barrier()
        # Keys are the rows and heads the columns: wgmma takes 64 rows or more.
        score = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
        score = warpgroup_mma(c, nope.permute((1, 0)), score, is_async=True)
        score = warpgroup_mma(r, pe.permute((1, 0)), score, is_async=True)
        score = warpgroup_mma_wait(0, deps=[score])
        score = gl.where((key < end)[:, None], score * scale, -float("inf"))
        top, shrink, weight = _weigh(score, top)
        total = total * shrink[None, :] + weight
        # The weights, in bf16, go through shared memory to the second product: rank by heads.
        weights.store(weight.to(gl.bfloat16))
        out = out * gl.convert_layout(shrink, gl.SliceLayout(0, OUT))[None, :]
        fence_async_shared()
        gl.barrier()
        out = warpgroup_mma(c.permute((1, 0)), weights, out, is_async=True)
        out = warpgroup_mma_wait(0, deps=[out])
        # Every warp is done with this block: the next but one may take its place. Behind the last
        # block the copies are masked, and write zeros that nobody reads.
        gl.barrier()
        c_key, r_key, c_rows, r_rows = _ask(
            *(latents_ptr, ropes_ptr, latent_stride, page, c_key, r_key, end, c_rows, r_rows),
            *(c_column, r_column, c, r),
        )
        key += KEYS
    async_copy.wait_group(0)
    _store_share(partial_ptr, lse_ptr, out, top, total, p, heads, programs, SCORES, OUT, STORE)

"""As `_hopper_fp8.py`, but the next block of keys is widened while this block's scores are made.

There a block's steps wait for one another: its bytes arrive, the threads widen them, wgmma makes
the scores, then the softmax, then wgmma adds the values. Here wgmma makes the scores of one block
while the threads widen the next into a second place. The bytes of two blocks no longer fit beside
that, so bytes come in halves of a block: each half is asked for again as soon as it is widened.

Shared memory in KiB, with 64 keys and 32 heads: two widened blocks 2 * 64, bytes of two halves
2 * 16 and their scales 2 * 0.5, rope parts of two blocks 2 * 8, queries 36, weights 4: 217 of 227.

It has never run on a GPU, so servers do not use it: `launch._kernel_for` takes it only if asked.
"""

from __future__ import annotations

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from longcat_kernels.mla_decode._hopper import _queries, _rows, _store_share, _weigh
from longcat_kernels.mla_decode._hopper_fp8 import _cells, _widened
from longcat_kernels.mla_decode._triton import share_of


@gluon.jit
def _ask_half(latents_ptr, scales_ptr, words, page, keys, end, rows, columns, c_half, s_half):
    """Starts the copy of half a block's values and scales. Returns keys and rows of the next half.
    keys, rows, columns: of values and of scales, in the layouts of their copies."""
    KEYS: gl.constexpr = c_half.shape[0]
    c_key, s_key = keys
    c = _cells(latents_ptr, rows[0], words, columns[0])
    s = _cells(scales_ptr, rows[1], words, columns[1])
    async_copy.async_load(c_half, c, mask=(c_key < end)[:, None])
    async_copy.async_load(s_half, s, mask=(s_key < end)[:, None])
    async_copy.commit_group()
    c_key, s_key = c_key + KEYS, s_key + KEYS
    return (c_key, s_key), _rows(page, c_key, s_key, end)


@gluon.jit
def _ask_ropes(ropes_ptr, words, page, key, end, row, column, r_block):
    """The same for a block's rope parts. Returns keys and rows of the next block."""
    KEYS: gl.constexpr = r_block.shape[0]
    cells = _cells(ropes_ptr, row, words, column)
    async_copy.async_load(r_block, cells, mask=(key < end)[:, None])
    async_copy.commit_group()
    key += KEYS
    return key, gl.load(page + key, mask=key < end, other=0)


@gluon.jit
def _widen_block(
    latents_ptr,
    scales_ptr,
    words,
    page,
    keys,
    end,
    rows,
    columns,
    c_halves,
    s_halves,
    wide,
    out,
    LAYOUT: gl.constexpr,
    QUARTERS: gl.constexpr,
):
    """Widens a block to bf16, half after half. As soon as a half's bytes are read, the copy of the
    same half of the next block starts. out: of a product that may still read `wide`, so it is
    waited for before the first store; two younger groups of wgmma stay in flight. Returns it, and
    the keys and rows that come next."""
    HALF: gl.constexpr = c_halves.shape[1]
    for h in gl.static_range(2):
        # Copies younger than this half, in their order: the other half of this block, the rope
        # parts of this block, the first half of the next. So the second wait, for all but the
        # last, is for the rope parts too.
        async_copy.wait_group(2 - h)
        gl.barrier()
        values = _widened(c_halves.index(h), s_halves.index(h), LAYOUT, QUARTERS)
        if h == 0:
            out = warpgroup_mma_init(warpgroup_mma_wait(2, deps=[out]))
        gl.barrier()
        wide.slice(HALF * h, HALF).store(values)
        keys, rows = _ask_half(
            *(latents_ptr, scales_ptr, words, page, keys, end, rows, columns),
            *(c_halves.index(h), s_halves.index(h)),
        )
    return out, keys, rows


@gluon.jit
def _scores(c, r, nope, pe, SCORES: gl.constexpr):
    """Starts the products of a block's keys with all queries: two groups of wgmma."""
    score = gl.zeros([c.shape[0], nope.shape[0]], gl.float32, SCORES)
    score = warpgroup_mma(c, nope.permute((1, 0)), score, is_async=True)
    return warpgroup_mma(r, pe.permute((1, 0)), score, is_async=True)


@gluon.jit
def _add_weights(score, scale, key, end, top, total, out, weights, OUT: gl.constexpr):
    """Softmax while walking: a block's weights go to shared memory, sums so far shrink."""
    score = gl.where((key < end)[:, None], score * scale, -float("inf"))
    top, shrink, weight = _weigh(score, top)
    total = total * shrink[None, :] + weight
    weights.store(weight.to(gl.bfloat16))
    out = out * gl.convert_layout(shrink, gl.SliceLayout(0, OUT))[None, :]
    return top, total, out


@gluon.jit(
    do_not_specialize=["tokens", "heads", "programs"],
    do_not_specialize_on_alignment=["requests_ptr", "positions_ptr", "page_stride"],
)
def _hopper_fp8_ahead_kernel(
    q_nope_ptr,
    q_pe_ptr,
    latents_ptr,
    ropes_ptr,
    scales_ptr,
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
    latent_stride,  # in words of 16 bytes
    page_stride,
    WIDTH: gl.constexpr,
    TOKENS: gl.constexpr,
    HEADS: gl.constexpr,  # 16 or 32
    RANK: gl.constexpr,
    ROPE: gl.constexpr,
    KEYS: gl.constexpr,
    FP8: gl.constexpr,  # True here
    PDL: gl.constexpr,
):
    # Layouts as in `_hopper_fp8.py`.
    WARPS: gl.constexpr = gl.num_warps()
    HALF: gl.constexpr = KEYS // 2
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 2], [16, HEADS // 2, 16])
    OUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, HEADS, 16])
    LATENT: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [WARPS, 1], [1, 0])
    BYTES: gl.constexpr = gl.BlockedLayout([1, 16], [1, 32], [WARPS, 1], [1, 0])
    ANGLE: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0])
    FACTORS: gl.constexpr = gl.BlockedLayout([1, 4], [32, 1], [WARPS, 1], [1, 0])
    QUARTERS: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 2, 16], [WARPS, 1, 1], [2, 1, 0])
    STORE: gl.constexpr = gl.BlockedLayout([8, 1], [32, 1], [1, WARPS], [0, 1])
    VECTOR: gl.constexpr = gl.BlockedLayout([TOKENS // 32], [32], [WARPS], [0])
    LINES: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    WEIGHTS: gl.constexpr = gl.NVMMASharedLayout(2 * HEADS, 16, 2)
    PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    # The second launch may start at once: it waits for this one before it reads a result.
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    p = gl.program_id(0)
    token = gl.arange(0, TOKENS, layout=VECTOR)
    t, begin, end = share_of(positions_ptr, p, token, tokens, programs, KEYS)
    if t >= tokens:
        return
    # From here on a program has at least one key, by `share_of`: without any, the highest score
    # would be -inf, and each weight NaN.
    request = gl.load(requests_ptr + t // WIDTH).to(gl.int64)
    page = pages_ptr + request * page_stride

    c_halves = gl.allocate_shared_memory(gl.float8e4nv, [2, HALF, RANK], PLAIN)
    s_halves = gl.allocate_shared_memory(gl.float32, [2, HALF, 4], PLAIN)
    r_blocks = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, ROPE], LINES)
    wide = gl.allocate_shared_memory(gl.bfloat16, [2, KEYS, RANK], LINES)
    weights = gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], WEIGHTS)
    c_key = begin + gl.arange(0, HALF, layout=gl.SliceLayout(1, BYTES))
    s_key = begin + gl.arange(0, HALF, layout=gl.SliceLayout(1, FACTORS))
    r_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, ANGLE))
    c_column = gl.arange(0, RANK, layout=gl.SliceLayout(0, BYTES))
    s_column = gl.arange(0, 4, layout=gl.SliceLayout(0, FACTORS))
    r_column = gl.arange(0, ROPE, layout=gl.SliceLayout(0, ANGLE))
    columns = (c_column, s_column)
    keys = (c_key, s_key)
    rows = _rows(page, c_key, s_key, end)
    r_row = gl.load(page + r_key, mask=r_key < end, other=0)
    # The first block is asked for before the wait, under the kernel that makes the queries: that
    # kernel writes neither keys nor positions.
    for h in gl.static_range(2):
        keys, rows = _ask_half(
            *(latents_ptr, scales_ptr, latent_stride, page, keys, end, rows, columns),
            *(c_halves.index(h), s_halves.index(h)),
        )
    r_key, r_row = _ask_ropes(
        ropes_ptr, latent_stride, page, r_key, end, r_row, r_column, r_blocks.index(0)
    )
    out = warpgroup_mma_init(gl.zeros([RANK, HEADS], gl.float32, OUT))
    out, keys, rows = _widen_block(
        *(latents_ptr, scales_ptr, latent_stride, page, keys, end, rows, columns),
        *(c_halves, s_halves, wide.index(0), out, LATENT, QUARTERS),
    )
    r_key, r_row = _ask_ropes(
        ropes_ptr, latent_stride, page, r_key, end, r_row, r_column, r_blocks.index(1)
    )
    if PDL:
        tl.extra.cuda.gdc_wait()
    t = t.to(gl.int64)
    q_column = gl.arange(0, RANK, layout=gl.SliceLayout(0, LATENT))
    nope = _queries(q_nope_ptr, t, nope_token, nope_head, heads, q_column, HEADS, LATENT)
    pe = _queries(q_pe_ptr, t, pe_token, pe_head, heads, r_column, HEADS, ANGLE)
    nope = gl.allocate_shared_memory(gl.bfloat16, [HEADS, RANK], LINES, nope)
    pe = gl.allocate_shared_memory(gl.bfloat16, [HEADS, ROPE], LINES, pe)

    key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, SCORES))
    top = gl.full([HEADS], -float("inf"), gl.float32, gl.SliceLayout(0, SCORES))
    total = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
    fence_async_shared()
    gl.barrier()
    blocks = gl.cdiv(end - begin, KEYS)
    score = _scores(wide.index(0), r_blocks.index(0), nope, pe, SCORES)
    if blocks > 1:
        out, keys, rows = _widen_block(
            *(latents_ptr, scales_ptr, latent_stride, page, keys, end, rows, columns),
            *(c_halves, s_halves, wide.index(1), out, LATENT, QUARTERS),
        )
    out, score = warpgroup_mma_wait(0, deps=[out, score])
    top, total, out = _add_weights(score, scale, key, end, top, total, out, weights, OUT)
    r_key, r_row = _ask_ropes(
        ropes_ptr, latent_stride, page, r_key, end, r_row, r_column, r_blocks.index(0)
    )
    fence_async_shared()
    gl.barrier()
    # Nothing is in flight from one turn to the next: ptxas would wait behind each wgmma (C7514).
    for i in range(1, blocks):
        this, other = i % 2, (i + 1) % 2
        key += KEYS
        out = warpgroup_mma(wide.index(other).permute((1, 0)), weights, out, is_async=True)
        score = _scores(wide.index(this), r_blocks.index(this), nope, pe, SCORES)
        # In flight: the block before's product with its values, this block's two with the queries.
        if i + 1 < blocks:
            out, keys, rows = _widen_block(
                *(latents_ptr, scales_ptr, latent_stride, page, keys, end, rows, columns),
                *(c_halves, s_halves, wide.index(other), out, LATENT, QUARTERS),
            )
        out, score = warpgroup_mma_wait(0, deps=[out, score])
        top, total, out = _add_weights(score, scale, key, end, top, total, out, weights, OUT)
        # All warps have made this block's scores: the next but one block's rope parts come here.
        # In front of the fence, because behind it Triton would put another between the products.
        r_key, r_row = _ask_ropes(
            ropes_ptr, latent_stride, page, r_key, end, r_row, r_column, r_blocks.index(this)
        )
        fence_async_shared()
        gl.barrier()
    last = (blocks - 1) % 2
    out = warpgroup_mma(wide.index(last).permute((1, 0)), weights, out, is_async=True)
    out = warpgroup_mma_wait(0, deps=[out])
    async_copy.wait_group(0)
    _store_share(partial_ptr, lse_ptr, out, top, total, p, heads, programs, SCORES, OUT, STORE)

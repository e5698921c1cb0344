"""The first launch of MLA decode on Hopper over FP8 rows of the KV pool, in Gluon.

As `_hopper.py`, but wgmma multiplies bf16 with bf16. So copies bring the bytes of two blocks of
keys into shared memory, and the threads widen one block into a third place, from which both
products read. Values are scaled there (`_triton._keys` says why).

Shared memory in KiB, with 64 keys and 32 heads: queries 36, two blocks of bytes 2 * 32, their rope
parts 2 * 8 and scales 2 * 1, the widened block 64, weights 4: 186 of 227.

Widening bounds it: FP8 rows take 1.0 to 1.2 times as long as bf16 rows
(docs/measurements/kv-cache.md).
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

from longcat_kernels.mla_decode._hopper import _queries, _rows, _store_share, _weigh
from longcat_kernels.mla_decode._triton import share_of

_MOST_HEADS = 32  # 36 KiB of queries
_RANK, _ROPE = 512, 64  # the kernel's layouts are made for them


def supports(q_nope: torch.Tensor, q_pe: torch.Tensor) -> bool:
    """Whether the kernel can run. `kv_rows.parts` has refused rows that do not begin at words."""
    widths = q_nope.shape[-1], q_pe.shape[-1]
    return q_nope.shape[1] <= _MOST_HEADS and widths == (_RANK, _ROPE)


@gluon.jit
def _ask(
    latents_ptr,
    ropes_ptr,
    scales_ptr,
    words,
    page,
    keys,
    end,
    rows,
    columns,
    c_block,
    r_block,
    s_block,
):
    """Starts the copy of the rows' three parts into shared memory, zeros from key `end` on. Returns
    the keys and rows of the next block. keys, rows, columns: of values, rope parts and scales, in
    the layouts of their copies; words: from one row to the next, of 16 bytes each."""
    KEYS: gl.constexpr = c_block.shape[0]
    c_key, r_key, s_key = keys
    c_rows, r_rows, s_rows = rows
    c_column, r_column, s_column = columns
    c = latents_ptr + (c_rows.to(gl.int64) * words * 16)[:, None] + c_column[None, :]
    r = ropes_ptr + (r_rows.to(gl.int64) * words * 8)[:, None] + r_column[None, :]
    s = scales_ptr + (s_rows.to(gl.int64) * words * 4)[:, None] + s_column[None, :]
    async_copy.async_load(c_block, c, mask=(c_key < end)[:, None])
    async_copy.async_load(r_block, r, mask=(r_key < end)[:, None])
    async_copy.async_load(s_block, s, mask=(s_key < end)[:, None])
    async_copy.commit_group()
    c_key, r_key, s_key = c_key + KEYS, r_key + KEYS, s_key + KEYS
    c_rows, r_rows = _rows(page, c_key, r_key, end)
    s_rows = gl.load(page + s_key, mask=s_key < end, other=0)
    return (c_key, r_key, s_key), (c_rows, r_rows, s_rows)


@gluon.jit
def _widen(c_block, s_block, wide, LAYOUT: gl.constexpr, QUARTERS: gl.constexpr):
    """A block's values in bf16, from bytes and scales in shared memory. LAYOUT: of keys and
    columns; QUARTERS: the same elements in the same threads, with an axis for the four quarters of
    a row, so that neither conversion moves a value."""
    KEYS: gl.constexpr = c_block.shape[0]
    RANK: gl.constexpr = c_block.shape[1]
    q = c_block.load(LAYOUT).to(gl.float32).reshape([KEYS, 4, RANK // 4])
    scales = s_block.load(gl.SliceLayout(2, QUARTERS))
    values = gl.convert_layout(q, QUARTERS) * scales[:, :, None]
    wide.store(gl.convert_layout(values.to(gl.bfloat16).reshape([KEYS, RANK]), LAYOUT))


@gluon.jit(
    do_not_specialize=["tokens", "heads", "programs"],
    do_not_specialize_on_alignment=["requests_ptr", "positions_ptr", "page_stride"],
)
def _hopper_fp8_kernel(
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
    WARPS: gl.constexpr = gl.num_warps()
    BLOCKS: gl.constexpr = 2  # of bytes, in shared memory
    # As in `_hopper.py`; BYTES: copies of 16 bytes, a warp per row. FACTORS: a row's four scales
    # are one copy. LATENT and QUARTERS: 8 columns a thread, so that a warp reads 256 bytes of a row
    # and writes four whole lines of 128 bytes: no two threads of a phase meet in a bank.
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
    request = gl.load(requests_ptr + t // WIDTH).to(gl.int64)
    page = pages_ptr + request * page_stride

    # Ask for the first two blocks of keys before the wait, under the kernel that makes the queries:
    # that kernel writes neither keys nor positions.
    c_blocks = gl.allocate_shared_memory(gl.float8e4nv, [BLOCKS, KEYS, RANK], PLAIN)
    r_blocks = gl.allocate_shared_memory(gl.bfloat16, [BLOCKS, KEYS, ROPE], LINES)
    s_blocks = gl.allocate_shared_memory(gl.float32, [BLOCKS, KEYS, 4], PLAIN)
    c = gl.allocate_shared_memory(gl.bfloat16, [KEYS, RANK], LINES)
    weights = gl.allocate_shared_memory(gl.bfloat16, [KEYS, HEADS], WEIGHTS)
    c_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, BYTES))
    r_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, ANGLE))
    s_key = begin + gl.arange(0, KEYS, layout=gl.SliceLayout(1, FACTORS))
    c_column = gl.arange(0, RANK, layout=gl.SliceLayout(0, BYTES))
    r_column = gl.arange(0, ROPE, layout=gl.SliceLayout(0, ANGLE))
    s_column = gl.arange(0, 4, layout=gl.SliceLayout(0, FACTORS))
    columns = (c_column, r_column, s_column)
    keys = (c_key, r_key, s_key)
    c_rows, r_rows = _rows(page, c_key, r_key, end)
    rows = (c_rows, r_rows, gl.load(page + s_key, mask=s_key < end, other=0))
    for i in gl.static_range(BLOCKS):
        keys, rows = _ask(
            *(latents_ptr, ropes_ptr, scales_ptr, latent_stride, page, keys, end, rows),
            *(columns, c_blocks.index(i), r_blocks.index(i), s_blocks.index(i)),
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
    out = gl.zeros([RANK, HEADS], gl.float32, OUT)
    for i in range(gl.cdiv(end - begin, KEYS)):
        bytes = c_blocks.index(i % BLOCKS)
        r = r_blocks.index(i % BLOCKS)
        factors = s_blocks.index(i % BLOCKS)
        # This block has arrived when at most one younger copy is left. The barrier also says that
        # every warp is done with the widened block before.
        async_copy.wait_group(BLOCKS - 1)
        gl.barrier()
        _widen(bytes, factors, c, LATENT, QUARTERS)
        fence_async_shared()
        gl.barrier()
        score = gl.zeros([KEYS, HEADS], gl.float32, SCORES)
        score = warpgroup_mma(c, nope.permute((1, 0)), score, is_async=True)
        score = warpgroup_mma(r, pe.permute((1, 0)), score, is_async=True)
        score = warpgroup_mma_wait(0, deps=[score])
        score = gl.where((key < end)[:, None], score * scale, -float("inf"))
        top, shrink, weight = _weigh(score, top)
        total = total * shrink[None, :] + weight
        weights.store(weight.to(gl.bfloat16))
        out = out * gl.convert_layout(shrink, gl.SliceLayout(0, OUT))[None, :]
        fence_async_shared()
        gl.barrier()
        # The bytes are widened and the scores made, in all warps: the next but one block may take
        # their place while the second product runs.
        out = warpgroup_mma(c.permute((1, 0)), weights, out, is_async=True)
        keys, rows = _ask(
            *(latents_ptr, ropes_ptr, scales_ptr, latent_stride, page, keys, end, rows),
            *(columns, bytes, r, factors),
        )
        out = warpgroup_mma_wait(0, deps=[out])
        key += KEYS
    async_copy.wait_group(0)
    _store_share(partial_ptr, lse_ptr, out, top, total, p, heads, programs, SCORES, OUT, STORE)

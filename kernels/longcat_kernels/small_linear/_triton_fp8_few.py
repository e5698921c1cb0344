"""Dense projections of two to four tokens from block-FP8 weights, in Triton: program `few`.

Without tensor cores: these tokens are too few to fill them, and a DeepGEMM launch of one to 32
tokens takes the same 6 to 16 us, a chain of latencies. A program has a few output rows and all of
K. Weights widen to fp32; each sum of eight products is multiplied by the scale of its 128 columns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longcat_kernels.small_linear._triton import _gate, _rows


@triton.jit
def _offsets(first, GROUPS: tl.constexpr):
    """[1, GROUPS, 16, 8] columns from `first` on. A thread has eight in a row, of the weights and
    of x alike, so that neither moves to other threads before they are multiplied."""
    group = tl.arange(0, GROUPS)[None, :, None, None] * 128
    part = tl.arange(0, 16)[None, None, :, None] * 8
    return first + group + part + tl.arange(0, 8)[None, None, None, :]


@triton.jit
def _groups(w_ptr, rows, first, K: tl.constexpr, GROUPS: tl.constexpr):
    """Tile [rows, GROUPS, 16, 8] of the columns from `first` on."""
    k = _offsets(first, GROUPS)
    cells = w_ptr + rows[:, None, None, None] * K + k
    if K % (GROUPS * 128) == 0:
        return tl.load(cells, eviction_policy="evict_first")
    else:
        return tl.load(cells, mask=k < K, other=0.0, eviction_policy="evict_first")


@triton.jit
def _append(tiles, w_ptr, rows, first: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr):
    """tiles, and the tile that begins at `first` if there is one."""
    if first < K:
        tiles += (_groups(w_ptr, rows, first, K, GROUPS),)
    return tiles


@triton.jit
def _ahead(w_ptr, rows, K: tl.constexpr, GROUPS: tl.constexpr, AHEAD: tl.constexpr):
    """The first AHEAD tiles, or all if K has fewer: read before `gdc_wait`."""
    tiles = ()
    for i in tl.static_range(AHEAD):
        tiles = _append(tiles, w_ptr, rows, i * GROUPS * 128, K, GROUPS)
    return tiles


@triton.jit
def _scales(s_ptr, K: tl.constexpr, GROUPS: tl.constexpr):
    """A row of scales by tiles [1, GROUPS, 16], all asked for before the first is used."""
    tiles = ()
    for first in tl.static_range(0, K, GROUPS * 128):
        group = first // 128 + tl.arange(0, GROUPS)[None, :, None] + tl.zeros([1, 1, 16], tl.int32)
        tiles += (tl.load(s_ptr + group, mask=group < K // 128, other=0.0),)
    return tiles


@triton.jit
def _x_tiles(
    tiles,
    x_ptr,
    tokens,
    stride,
    first: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """tiles, and [1, GROUPS, 16, 8] of each token's columns from `first` on if there are any."""
    if first < K:
        k = _offsets(first, GROUPS)
        for t in tl.static_range(TOKENS):
            tiles += (tl.load(x_ptr + t * stride + k, mask=(k < K) & (t < tokens), other=0.0),)
    return tiles


@triton.jit
def _multiply_add(totals, tile, xs, scale, TOKENS: tl.constexpr):
    """Each token's total [rows, GROUPS, 16] and its products with a tile: eight columns are added
    up in a thread, and then multiplied by their scale."""
    added = ()
    wide = tile.to(tl.float32)
    for t in tl.static_range(TOKENS):
        added += (totals[t] + tl.sum(wide * xs[t].to(tl.float32), axis=3) * scale,)
    return added


@triton.jit
def _zeros(BLOCK_N: tl.constexpr, GROUPS: tl.constexpr, TOKENS: tl.constexpr):
    totals = ()
    for _ in tl.static_range(TOKENS):
        totals += (tl.zeros([BLOCK_N, GROUPS, 16], dtype=tl.float32),)
    return totals


@triton.jit(do_not_specialize=["tokens"])
def _few_kernel(
    x_ptr,  # [tokens, K], rows `stride` apart
    w_ptr,  # [n, K] e4m3, or [2 * n, K] if SWIGLU
    s_ptr,  # [rows / 128, K / 128]
    out_ptr,  # [tokens, n]
    tokens,
    stride,
    n,
    K: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    TOKENS: tl.constexpr,  # 2 or 4, of which the first `tokens` are real
    PDL: tl.constexpr,
):
    GROUPS: tl.constexpr = BLOCK_K // 128
    X_AHEAD: tl.constexpr = 2  # tiles of x that are asked for ahead
    rows, read = _rows(n, BLOCK_N, PDL)
    tiles = _ahead(w_ptr, read, K, GROUPS, AHEAD)
    ups = _ahead(w_ptr, read + n, K, GROUPS, AHEAD if SWIGLU else 0)
    s_row = s_ptr + tl.program_id(0) * BLOCK_N // 128 * (K // 128)
    scales = _scales(s_row, K, GROUPS)
    if SWIGLU:
        up_scales = _scales(s_row + n // 128 * (K // 128), K, GROUPS)
    if PDL:
        tl.extra.cuda.gdc_wait()
    xs = ()
    for i in tl.static_range(X_AHEAD):
        xs = _x_tiles(xs, x_ptr, tokens, stride, i * BLOCK_K, K, GROUPS, TOKENS)
    totals = _zeros(BLOCK_N, GROUPS, TOKENS)
    up_totals = totals
    for i in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        totals = _multiply_add(totals, tiles[0], xs, scales[i], TOKENS)
        tiles = _append(tiles[1:], w_ptr, read, (i + AHEAD) * BLOCK_K, K, GROUPS)
        if SWIGLU:
            up_totals = _multiply_add(up_totals, ups[0], xs, up_scales[i], TOKENS)
            ups = _append(ups[1:], w_ptr, read + n, (i + AHEAD) * BLOCK_K, K, GROUPS)
        xs = _x_tiles(
            xs[TOKENS:], x_ptr, tokens, stride, (i + X_AHEAD) * BLOCK_K, K, GROUPS, TOKENS
        )
    for t in tl.static_range(TOKENS):
        result = tl.sum(tl.sum(totals[t], axis=2), axis=1)
        if SWIGLU:
            result = _gate(result, tl.sum(tl.sum(up_totals[t], axis=2), axis=1))
        live = (rows < n) & (t < tokens)
        tl.store(out_ptr + t * n + rows, result.to(out_ptr.dtype.element_ty), mask=live)

"""Dense projections of few tokens from block-FP8 weights, in Triton.

The two kernels of `_triton`, which hold FP8 tiles: a byte an element, so that twice as many columns
are in flight. A program's rows lie in one block of 128 rows, so each 128 columns have one scale.

  gemv   x times the scales, in fp32, is what the weights are multiplied with
  mma    weights widen to bf16 (exact); the fp32 sum of 128 columns is multiplied by their scale
"""

from __future__ import annotations

import triton
import triton.language as tl

from longcat_kernels.small_linear._triton import _gate, _rows


@triton.jit
def _groups(w_ptr, rows, first, K: tl.constexpr, GROUPS: tl.constexpr):
    """Tile [rows, GROUPS, 128] of the columns from `first` on."""
    group = tl.arange(0, GROUPS)[None, :, None] * 128
    k = first + group + tl.arange(0, 128)[None, None, :]
    cells = w_ptr + rows[:, None, None] * K + k
    if K % (GROUPS * 128) == 0:
        return tl.load(cells, eviction_policy="evict_first")
    else:
        return tl.load(cells, mask=first + group < K, other=0.0, eviction_policy="evict_first")


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
def _inputs(x_ptr, s_ptr, K: tl.constexpr, GROUPS: tl.constexpr, SCALES: tl.constexpr):
    """All of x, or of one row of scales, by tiles [1, GROUPS, 128] or [1, GROUPS, 1]. All loads are
    asked for before the first is used: one wait for memory instead of one a tile."""
    tiles = ()
    for first in tl.static_range(0, K, GROUPS * 128):
        group = first // 128 + tl.arange(0, GROUPS)[None, :, None]
        if SCALES:
            tiles += (tl.load(s_ptr + group, mask=group < K // 128, other=0.0),)
        else:
            k = group * 128 + tl.arange(0, 128)[None, None, :]
            tiles += (tl.load(x_ptr + k, mask=k < K, other=0.0),)
    return tiles


@triton.jit
def _gemv_kernel(
    x_ptr,  # [K]
    w_ptr,  # [n, K] e4m3, or [2 * n, K] if SWIGLU
    s_ptr,  # [rows / 128, K / 128]
    out_ptr,  # [n]
    n,
    K: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    GROUPS: tl.constexpr = BLOCK_K // 128
    rows, read = _rows(n, BLOCK_N, PDL)
    tiles = _ahead(w_ptr, read, K, GROUPS, AHEAD)
    ups = _ahead(w_ptr, read + n, K, GROUPS, AHEAD if SWIGLU else 0)
    s_row = s_ptr + tl.program_id(0) * BLOCK_N // 128 * (K // 128)
    scales = _inputs(x_ptr, s_row, K, GROUPS, True)
    if SWIGLU:
        up_scales = _inputs(x_ptr, s_row + n // 128 * (K // 128), K, GROUPS, True)
    if PDL:
        tl.extra.cuda.gdc_wait()
    xs = _inputs(x_ptr, s_ptr, K, GROUPS, False)
    total = tl.zeros([BLOCK_N, GROUPS, 128], dtype=tl.float32)
    up_total = tl.zeros([BLOCK_N, GROUPS, 128], dtype=tl.float32)
    for i in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        x = xs[i].to(tl.float32)
        total += tiles[0].to(tl.float32) * (x * scales[i])
        tiles = _append(tiles[1:], w_ptr, read, (i + AHEAD) * BLOCK_K, K, GROUPS)
        if SWIGLU:
            up_total += ups[0].to(tl.float32) * (x * up_scales[i])
            ups = _append(ups[1:], w_ptr, read + n, (i + AHEAD) * BLOCK_K, K, GROUPS)
    result = tl.sum(tl.sum(total, axis=2), axis=1)
    if SWIGLU:
        result = _gate(result, tl.sum(tl.sum(up_total, axis=2), axis=1))
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=rows < n)


@triton.jit
def _columns(x_ptr, tokens, stride, first, TOKENS: tl.constexpr):
    """Columns [first : first + 128] of x, zeros beyond its tokens."""
    t = tl.arange(0, TOKENS)
    k = first + tl.arange(0, 128)
    return tl.load(x_ptr + t[:, None] * stride + k[None, :], mask=(t < tokens)[:, None], other=0.0)


@triton.jit
def _block(w_ptr, rows, first, K: tl.constexpr):
    cells = w_ptr + rows[:, None] * K + first + tl.arange(0, 128)[None, :]
    return tl.load(cells, eviction_policy="evict_first")


@triton.jit
def _blocks_ahead(w_ptr, rows, K: tl.constexpr, AHEAD: tl.constexpr):
    """The first AHEAD blocks of 128 columns: read before `gdc_wait`."""
    blocks = ()
    for i in tl.static_range(AHEAD):
        blocks += (_block(w_ptr, rows, i * 128, K),)
    return blocks


@triton.jit
def _multiply(x, block, scale, total):
    """total + (x block^T) * scale; the e4m3 block is exact in bf16."""
    # By way of fp32, in two packed conversions. Triton's own way, by fp16, converts each element by
    # itself, at a quarter of the rate.
    return total + tl.dot(x, block.to(tl.float32).to(x.dtype).T) * scale


@triton.jit(do_not_specialize=["tokens"])
def _mma_kernel(
    x_ptr,  # [tokens, K], rows `stride` apart
    w_ptr,
    s_ptr,
    out_ptr,  # [tokens, n]
    tokens,
    stride,
    n,
    K: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    BLOCK_K: tl.constexpr,  # a multiple of 128: columns of one step of the pipeline
    AHEAD: tl.constexpr,  # blocks of 128 columns
    STAGES: tl.constexpr,
    TOKENS: tl.constexpr,
    PDL: tl.constexpr,
):
    rows, read = _rows(n, BLOCK_N, PDL)
    blocks = _blocks_ahead(w_ptr, read, K, AHEAD)
    ups = _blocks_ahead(w_ptr, read + n, K, AHEAD if SWIGLU else 0)
    scales = s_ptr + tl.program_id(0) * BLOCK_N // 128 * (K // 128)
    up_scales = scales + n // 128 * (K // 128)
    if PDL:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([TOKENS, BLOCK_N], dtype=tl.float32)
    up_total = tl.zeros([TOKENS, BLOCK_N], dtype=tl.float32)
    LOOP: tl.constexpr = (K - AHEAD * 128) // BLOCK_K * BLOCK_K
    for first in tl.range(AHEAD * 128, AHEAD * 128 + LOOP, BLOCK_K, num_stages=STAGES):
        for part in tl.static_range(0, BLOCK_K, 128):
            k = first + part
            x = _columns(x_ptr, tokens, stride, k, TOKENS)
            total = _multiply(x, _block(w_ptr, read, k, K), tl.load(scales + k // 128), total)
            if SWIGLU:
                up = _block(w_ptr, read + n, k, K)
                up_total = _multiply(x, up, tl.load(up_scales + k // 128), up_total)
    # The blocks that are in registers come last, so that the pipeline fills at once.
    for i in tl.static_range(AHEAD):
        x = _columns(x_ptr, tokens, stride, i * 128, TOKENS)
        total = _multiply(x, blocks[i], tl.load(scales + i), total)
        if SWIGLU:
            up_total = _multiply(x, ups[i], tl.load(up_scales + i), up_total)
    for k in tl.static_range(AHEAD * 128 + LOOP, K, 128):
        x = _columns(x_ptr, tokens, stride, k, TOKENS)
        total = _multiply(x, _block(w_ptr, read, k, K), tl.load(scales + k // 128), total)
        if SWIGLU:
            up = _block(w_ptr, read + n, k, K)
            up_total = _multiply(x, up, tl.load(up_scales + k // 128), up_total)
    if SWIGLU:
        total = _gate(total, up_total)
    t = tl.arange(0, TOKENS)
    live = (t < tokens)[:, None] & (rows < n)[None, :]
    cells = out_ptr + t[:, None] * n + rows[None, :]
    tl.store(cells, total.to(out_ptr.dtype.element_ty), mask=live)

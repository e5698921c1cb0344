"""Dense projections of few tokens in Triton, as fast as the weights can be read.

Two kernels, in which every program has a few output rows and all of K:
  gemv   one token: products and sums in fp32 registers, one reduction at the end
  mma    2 to 32 tokens: `tl.dot` with the tokens padded to 16 or 32, weights through a deep
         pipeline
With SWIGLU a program reads gate rows and the up rows that go with them.

4.3 TB/s at a latency of 1 us need 33 KB in flight on each of 132 SMs. Tiles, stages and AHEAD are
chosen for that (`configs.py`).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _weights(w_ptr, rows, first, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Tile [rows, first : first + BLOCK_K]."""
    k = first + tl.arange(0, BLOCK_K)
    cells = w_ptr + rows[:, None] * K + k[None, :]
    # Each byte is read once, so it need not stay in L2.
    if K % BLOCK_K == 0:
        return tl.load(cells, eviction_policy="evict_first")
    else:
        return tl.load(cells, mask=(k < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _append(tiles, w_ptr, rows, first: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """tiles, and the tile that begins at `first` if there is one."""
    if first < K:
        tiles += (_weights(w_ptr, rows, first, K, BLOCK_K),)
    return tiles


@triton.jit
def _ahead(w_ptr, rows, K: tl.constexpr, BLOCK_K: tl.constexpr, AHEAD: tl.constexpr):
    """The first AHEAD tiles, or all if K has fewer. They are read before `gdc_wait`, under the tail
    of the kernel ahead: only x depends on that kernel."""
    tiles = ()
    for i in tl.static_range(AHEAD):
        tiles = _append(tiles, w_ptr, rows, i * BLOCK_K, K, BLOCK_K)
    return tiles


@triton.jit
def _rows(n, BLOCK_N: tl.constexpr, PDL: tl.constexpr):
    """Output rows of this program: as they are, and with the last row in place of those beyond it,
    so that loads of weights need no mask."""
    # The next kernel may start at once: it waits for this one before it reads a result.
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    return rows, tl.minimum(rows, n - 1).to(tl.int64)


@triton.jit
def _gate(gate, up):
    return gate * tl.sigmoid(gate) * up


@triton.jit
def _gemv_kernel(
    x_ptr,  # [K]
    w_ptr,  # [n, K], or [2 * n, K] if SWIGLU
    out_ptr,  # [n]
    n,
    K: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    rows, read = _rows(n, BLOCK_N, PDL)
    tiles = _ahead(w_ptr, read, K, BLOCK_K, AHEAD)
    ups = _ahead(w_ptr, read + n, K, BLOCK_K, AHEAD if SWIGLU else 0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.float32)
    up_total = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.float32)
    # Unrolled. AHEAD tiles are always in flight: each step multiplies the oldest one and asks for
    # another.
    for first in tl.static_range(0, K, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)[None, :]
        total += tiles[0].to(tl.float32) * x
        tiles = _append(tiles[1:], w_ptr, read, first + AHEAD * BLOCK_K, K, BLOCK_K)
        if SWIGLU:
            up_total += ups[0].to(tl.float32) * x
            ups = _append(ups[1:], w_ptr, read + n, first + AHEAD * BLOCK_K, K, BLOCK_K)
    result = tl.sum(total, axis=1)
    if SWIGLU:
        result = _gate(result, tl.sum(up_total, axis=1))
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=rows < n)


@triton.jit
def _tokens(
    x_ptr, tokens, stride, first, K: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr
):
    """Columns [first : first + BLOCK_K] of x, zeros beyond its tokens and columns."""
    t = tl.arange(0, TOKENS)
    k = first + tl.arange(0, BLOCK_K)
    live = (t < tokens)[:, None]
    if K % BLOCK_K != 0:
        live = live & (k < K)[None, :]
    return tl.load(x_ptr + t[:, None] * stride + k[None, :], mask=live, other=0.0)


# How many tokens there are must not make a new variant.
@triton.jit(do_not_specialize=["tokens"])
def _mma_kernel(
    x_ptr,  # [tokens, K], rows `stride` apart
    w_ptr,
    out_ptr,  # [tokens, n]
    tokens,
    stride,
    n,
    K: tl.constexpr,
    SWIGLU: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    STAGES: tl.constexpr,
    TOKENS: tl.constexpr,  # 16 or 32, of which the first `tokens` are real
    PDL: tl.constexpr,
):
    rows, read = _rows(n, BLOCK_N, PDL)
    tiles = _ahead(w_ptr, read, K, BLOCK_K, AHEAD)
    ups = _ahead(w_ptr, read + n, K, BLOCK_K, AHEAD if SWIGLU else 0)
    if PDL:
        tl.extra.cuda.gdc_wait()
    # Triton's pipeline loads the tiles behind the first AHEAD ones.
    total = tl.zeros([TOKENS, BLOCK_N], dtype=tl.float32)
    up_total = tl.zeros([TOKENS, BLOCK_N], dtype=tl.float32)
    for first in tl.range(AHEAD * BLOCK_K, K, BLOCK_K, num_stages=STAGES):
        x = _tokens(x_ptr, tokens, stride, first, K, BLOCK_K, TOKENS)
        total = tl.dot(x, _weights(w_ptr, read, first, K, BLOCK_K).T, total)
        if SWIGLU:
            up_total = tl.dot(x, _weights(w_ptr, read + n, first, K, BLOCK_K).T, up_total)
    # The tiles that are in registers come last, so that the pipeline fills at once.
    for i in tl.static_range(AHEAD):
        if i * BLOCK_K < K:
            x = _tokens(x_ptr, tokens, stride, i * BLOCK_K, K, BLOCK_K, TOKENS)
            total = tl.dot(x, tiles[i].T, total)
            if SWIGLU:
                up_total = tl.dot(x, ups[i].T, up_total)
    if SWIGLU:
        total = _gate(total, up_total)
    t = tl.arange(0, TOKENS)
    live = (t < tokens)[:, None] & (rows < n)[None, :]
    cells = out_ptr + t[:, None] * n + rows[None, :]
    tl.store(cells, total.to(out_ptr.dtype.element_ty), mask=live)

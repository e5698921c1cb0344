"""A mixture of experts for few tokens in Triton, as fast as the weights can be read.

  _gate_up_kernel   h[s] = silu(W1[e] x) * (W3[e] x): a program per slot and BLOCK_N rows
  _down_kernel      y[t] = sum_k p_k W2[e_k] h[t, k] + w_t x[t]: one per token and BLOCK_N rows

Each slot reads its expert's weights by itself, so there is no list of tokens by expert to make. Two
tokens that share an expert read it twice, and the second time it comes from L2: programs of all
slots for the same rows start one after the other. Weights are tiles of 128 columns, which share a
scale in block FP8. `_down_kernel` knows its experts before `_gate_up_kernel` has ended, and reads
its first weights under that kernel's tail.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(w_ptr, rows, first, here, K: tl.constexpr, GROUPS: tl.constexpr):
    """[rows, GROUPS, 128] of the columns from `first` on; zeros, and no load, unless `here`."""
    group = first + tl.arange(0, GROUPS)[None, :, None] * 128
    cells = w_ptr + rows[:, None, None] * K + group + tl.arange(0, 128)[None, None, :]
    return tl.load(cells, mask=here & (group < K), other=0.0, eviction_policy="evict_first")


@triton.jit
def _append(tiles, w_ptr, rows, first: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr):
    """tiles, and the tile that begins at `first` if there is one."""
    if first < K:
        tiles += (_tile(w_ptr, rows, first, True, K, GROUPS),)
    return tiles


@triton.jit
def _ahead(w_ptr, rows, K: tl.constexpr, GROUPS: tl.constexpr, AHEAD: tl.constexpr):
    tiles = ()
    for i in tl.static_range(AHEAD):
        tiles = _append(tiles, w_ptr, rows, i * GROUPS * 128, K, GROUPS)
    return tiles


@triton.jit
def _columns(x_ptr, first, K: tl.constexpr, GROUPS: tl.constexpr):
    """[1, GROUPS, 128] of a row of x, fp32."""
    group = first + tl.arange(0, GROUPS)[None, :, None] * 128
    cells = x_ptr + group + tl.arange(0, 128)[None, None, :]
    return tl.load(cells, mask=group < K, other=0.0).to(tl.float32)


@triton.jit
def _scales(s_ptr, first, K: tl.constexpr, GROUPS: tl.constexpr):
    """[1, GROUPS, 1] of a row of scales."""
    group = first // 128 + tl.arange(0, GROUPS)[None, :, None]
    return tl.load(s_ptr + group, mask=group < K // 128, other=0.0)


@triton.jit
def _inputs(x_ptr, s_ptr, K: tl.constexpr, GROUPS: tl.constexpr, SCALED: tl.constexpr):
    """A row of x by tiles, times a row of scales if there are scales. All loads are asked for
    before the first is used."""
    tiles = ()
    for first in tl.static_range(0, K, GROUPS * 128):
        tile = _columns(x_ptr, first, K, GROUPS)
        if SCALED:
            tile *= _scales(s_ptr, first, K, GROUPS)
        tiles += (tile,)
    return tiles


@triton.jit
def _gate_up_kernel(
    x_ptr,  # [T, K]
    ids_ptr,  # [T, TOP_K]
    w_ptr,  # [E, 2 * N, K]
    s_ptr,  # [E, 2 * N / 128, K / 128] if SCALED
    out_ptr,  # [T, TOP_K, N]
    N: tl.constexpr,
    K: tl.constexpr,
    TOP_K: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    BLOCK_K: tl.constexpr,
    AHEAD: tl.constexpr,
    PDL: tl.constexpr,
):
    GROUPS: tl.constexpr = BLOCK_K // 128
    slot = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if PDL:
        tl.extra.cuda.gdc_wait()
        # After the wait: what the next kernel reads before its own wait was written by then.
        tl.extra.cuda.gdc_launch_dependents()
    expert = tl.load(ids_ptr + slot).to(tl.int64)
    if expert < 0:
        return
    gates = w_ptr + expert * (2 * N * K)
    tiles = _ahead(gates, rows, K, GROUPS, AHEAD)
    ups = _ahead(gates, rows + N, K, GROUPS, AHEAD)
    x_row = x_ptr + slot // TOP_K * K
    s_row = s_ptr
    if SCALED:
        s_row += (expert * (2 * N // 128) + tl.program_id(1) * BLOCK_N // 128) * (K // 128)
    xs = _inputs(x_row, s_row, K, GROUPS, SCALED)
    x_ups = xs
    if SCALED:
        x_ups = _inputs(x_row, s_row + N // 128 * (K // 128), K, GROUPS, True)
    gate = tl.zeros([BLOCK_N, GROUPS, 128], dtype=tl.float32)
    up = tl.zeros([BLOCK_N, GROUPS, 128], dtype=tl.float32)
    for i in tl.static_range((K + BLOCK_K - 1) // BLOCK_K):
        gate += tiles[0].to(tl.float32) * xs[i]
        up += ups[0].to(tl.float32) * x_ups[i]
        tiles = _append(tiles[1:], gates, rows, (i + AHEAD) * BLOCK_K, K, GROUPS)
        ups = _append(ups[1:], gates, rows + N, (i + AHEAD) * BLOCK_K, K, GROUPS)
    gate = tl.sum(tl.sum(gate, axis=2), axis=1)
    up = tl.sum(tl.sum(up, axis=2), axis=1)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + slot * N + rows, result.to(out_ptr.dtype.element_ty))


@triton.jit
def _down_kernel(
    h_ptr,  # [T, TOP_K, K]
    ids_ptr,  # [T, TOP_K]
    p_ptr,  # [T, TOP_K] router weights
    w_ptr,  # [E, N, K]
    s_ptr,  # [E, N / 128, K / 128] if SCALED
    x_ptr,  # [T, N] if IDENTITY
    identity_ptr,  # [T] if IDENTITY
    out_ptr,  # [T, N]
    N: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,  # of 128 columns: all of K
    TOP_K: tl.constexpr,
    SCALED: tl.constexpr,
    IDENTITY: tl.constexpr,
    BLOCK_N: tl.constexpr,  # divides 128
    AHEAD: tl.constexpr,  # slots
    PDL: tl.constexpr,
):
    t = tl.program_id(0)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    experts = ()
    tiles = ()
    for k in tl.static_range(TOP_K):
        # The router ended before the kernel ahead of this one went on, so the ids are there. They
        # are read past L1, which may hold those of another step.
        experts += (tl.load(ids_ptr + t * TOP_K + k, cache_modifier=".cg").to(tl.int64),)
        if k < AHEAD:
            tiles += (_tile(w_ptr + experts[k] * (N * K), rows, 0, experts[k] >= 0, K, GROUPS),)
    if PDL:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([BLOCK_N, GROUPS, 128], dtype=tl.float32)
    for k in tl.static_range(TOP_K):
        slot = t * TOP_K + k
        here = experts[k] >= 0
        group = tl.arange(0, GROUPS)[None, :, None] * 128
        cells = h_ptr + slot * K + group + tl.arange(0, 128)[None, None, :]
        h = tl.load(cells, mask=here & (group < K), other=0.0).to(tl.float32)
        factor = tl.load(p_ptr + slot)
        if SCALED:
            block = experts[k] * (N // 128) + tl.program_id(1) * BLOCK_N // 128
            scales = s_ptr + block * (K // 128) + tl.arange(0, GROUPS)[None, :, None]
            factor *= tl.load(scales, mask=here & (group < K), other=0.0)
        total += tiles[0].to(tl.float32) * (h * factor)
        tiles = tiles[1:]
        if k + AHEAD < TOP_K:
            expert = experts[k + AHEAD]
            tiles += (_tile(w_ptr + expert * (N * K), rows, 0, expert >= 0, K, GROUPS),)
    result = tl.sum(tl.sum(total, axis=2), axis=1)
    if IDENTITY:
        x = tl.load(x_ptr + t * N + rows).to(tl.float32)
        result += tl.load(identity_ptr + t) * x
    tl.store(out_ptr + t * N + rows, result.to(out_ptr.dtype.element_ty))

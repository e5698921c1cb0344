"""Projections of few tokens from block FP8 on both sides, in Triton: program `pair`.

wgmma multiplies e4m3 by e4m3, so nothing widens: the weights' rows are its 64 rows, the tokens its
8 to 32 columns. Each product of 128 columns is multiplied by its token's and its block's scale.
Everything that the loop reads goes through the pipeline, scales too: a scale that is loaded by
itself would cost each step the latency of memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longcat_kernels.small_linear._triton import _gate, _rows


@triton.jit
def _prefetch(w_ptr, rows, K: tl.constexpr, PARTS: tl.constexpr):
    """Asks for `rows` in L2, in PARTS pieces each, and waits for nothing. Before `gdc_wait`: memory
    works under the tail of the kernel ahead."""
    cells = w_ptr + rows[:, None] * K + tl.arange(0, PARTS)[None, :] * (K // PARTS)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [cells, K // PARTS],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _block(w_ptr, rows, k, K: tl.constexpr):
    cells = w_ptr + rows[:, None] * K + k[None, :]
    return tl.load(cells, eviction_policy="evict_first")


@triton.jit
def _multiply_add(total, q, q_scales, block, scale):
    """total [rows, tokens] + block q^T, scaled. q_scales, scale: [tokens]."""
    return total + tl.dot(block, q.T) * (q_scales * scale)[None, :]


@triton.jit
def _store_pair(out_ptr, out_scales_ptr, y, cells, live):
    """y [128, tokens], quantised by columns: a program's rows are one group of the next input.
    1e-10 and 448 are FLOOR and LARGEST of `fp8_layout`."""
    amax = tl.maximum(tl.max(tl.abs(y), axis=0), 1e-10)
    tl.store(out_scales_ptr, amax / 448.0, mask=live)
    q = y * (448.0 / amax)[None, :]
    tl.store(cells, q.to(out_ptr.dtype.element_ty), mask=live[None, :])


@triton.jit(do_not_specialize=["tokens", "padded"])
def _pair_kernel(
    q_ptr,  # [tokens, K] e4m3
    q_scales_ptr,  # [K / 128, padded]
    w_ptr,  # [n, K] e4m3, or [2 * n, K] if SWIGLU
    s_ptr,  # [rows / 128, K / 128]
    out_ptr,  # [tokens, n] bf16, or e4m3 if QUANTISED
    out_scales_ptr,  # [n / 128, tokens rounded up to 4] if QUANTISED
    tokens,
    padded,
    n,
    K: tl.constexpr,
    SWIGLU: tl.constexpr,
    QUANTISED: tl.constexpr,  # the result, with SWIGLU only
    BLOCK_N: tl.constexpr,  # divides 128; 128 if SWIGLU
    BLOCK_K: tl.constexpr,  # a multiple of 128, divides K
    PARTS: tl.constexpr,  # pieces of a row that are prefetched, 0: none
    STAGES: tl.constexpr,
    TOKENS: tl.constexpr,  # 8, 16 or 32, of which the first `tokens` are real
    PDL: tl.constexpr,
):
    rows, read = _rows(n, BLOCK_N, PDL)
    t = tl.arange(0, TOKENS)
    live = t < tokens
    scales = s_ptr + tl.program_id(0) * BLOCK_N // 128 * (K // 128) + 0 * t
    up_scales = scales + n // 128 * (K // 128)
    if PDL and PARTS > 0:
        _prefetch(w_ptr, read, K, PARTS)
        if SWIGLU:
            _prefetch(w_ptr, read + n, K, PARTS)
    if PDL:
        tl.extra.cuda.gdc_wait()
    total = tl.zeros([BLOCK_N, TOKENS], dtype=tl.float32)
    up_total = tl.zeros([BLOCK_N, TOKENS], dtype=tl.float32)
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        for part in tl.static_range(0, BLOCK_K, 128):
            group = (first + part) // 128
            k = first + part + tl.arange(0, 128)
            q = tl.load(q_ptr + t[:, None] * K + k[None, :], mask=live[:, None], other=0.0)
            q_scales = tl.load(q_scales_ptr + group * padded + t, mask=live, other=0.0)
            block = _block(w_ptr, read, k, K)
            total = _multiply_add(total, q, q_scales, block, tl.load(scales + group))
            if SWIGLU:
                up = _block(w_ptr, read + n, k, K)
                up_total = _multiply_add(up_total, q, q_scales, up, tl.load(up_scales + group))
    cells = out_ptr + t[None, :] * n + rows[:, None]
    if SWIGLU:
        total = _gate(total, up_total)
    if QUANTISED:
        # Rounded first, as if the activation had been written and read.
        y = total.to(tl.bfloat16).to(tl.float32)
        out_scales = out_scales_ptr + tl.program_id(0) * ((tokens + 3) // 4 * 4) + t
        _store_pair(out_ptr, out_scales, y, cells, live)
    else:
        y = total.to(out_ptr.dtype.element_ty)
        tl.store(cells, y, mask=live[None, :] & (rows < n)[:, None])

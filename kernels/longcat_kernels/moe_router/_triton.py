"""Routing in Triton: at most two launches from hidden states to what the expert GEMMs take.

`_logits_kernel`  one program per tile of the router's weight, which it reads once and whole, before
                  the kernel ahead has ended: products with up to 64 tokens, summed over the tile's
                  columns. 144 programs at LongCat-Flash-Lite's sizes.
`_route_kernel`   one program per token: adds the tiles' sums in their order (no atomics: every run
                  has the same bits), then k rounds of argmax over the scores in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options

# A tile is one warpgroup's wgmma with its parts in registers: 64 experts, since with fewer each
# warp repeats the others' products and spills, and 128 columns, so that every SM of 132 has a tile.
BLOCK_E, BLOCK_K = 64, 128
# Tokens of a program: wgmma's least, and those beyond which the weight is read again, from L2.
LEAST_ROWS, MOST_ROWS = 8, 64
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _top(number):
    """The first 8 of an fp32 number's 24 bits."""
    return (number.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _exact_dot(weight, x):
    """weight [E, K] fp32 times x [T, K] bf16, as [E, T]. Three bf16 numbers of 8 bits hold an fp32
    number's 24, so each product is exact and their sum has fp32's precision. 64 tokens
    take 24 wgmma where fp32 would take 4,096 FMAs a thread, and any batch makes the same sums."""
    high = _top(weight)
    middle = _top(weight - high)
    low = weight - high - middle
    x = tl.trans(x)
    total = tl.dot(low.to(tl.bfloat16), x)
    total = tl.dot(middle.to(tl.bfloat16), x, total)
    return tl.dot(high.to(tl.bfloat16), x, total)


@triton.jit(do_not_specialize=["tokens"])
def _logits_kernel(
    x_ptr,
    weight_ptr,
    parts_ptr,  # [splits, tokens, experts]
    tokens,
    width,
    experts,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    expert = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    column = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    live, inside = expert < experts, column < width
    cells = weight_ptr + expert[:, None] * width + column[None, :]
    weight = tl.load(cells, mask=live[:, None] & inside[None, :], other=0.0)
    if PDL:  # nothing in a step writes the weight; x, and memory that may have had a reader, wait
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    t = tl.program_id(2).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = t < tokens
    cells = x_ptr + t[:, None] * width + column[None, :]
    x = tl.load(cells, mask=exists[:, None] & inside[None, :], other=0.0)
    cells = parts_ptr + (tl.program_id(1) * tokens + t)[None, :] * experts + expert[:, None]
    tl.store(cells, _exact_dot(weight, x), mask=live[:, None] & exists[None, :])


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    parts_ptr,  # [SPLITS, tokens, experts]: logits are their sum
    bias_ptr,
    weights_ptr,
    ids_ptr,
    identity_ptr,
    tokens,
    experts,
    routed,
    scale,
    SPLITS: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    live = column < experts
    bias = tl.load(bias_ptr + column, mask=live, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    cells = parts_ptr + t * experts + column
    logits = tl.load(cells, mask=live, other=-float("inf"))
    for split in tl.static_range(1, SPLITS):
        logits += tl.load(cells + split * tokens * experts, mask=live, other=0.0)
    exponent = tl.exp(logits - tl.max(logits, axis=0))
    probability = exponent / tl.sum(exponent, axis=0)
    score = probability + bias
    # NaN counts as the lowest score, above what is chosen already and what is no expert, so that k
    # different experts are found whatever the logits.
    score = tl.where(score >= LOWEST, score, LOWEST)
    score = tl.where(live, score, -float("inf"))
    identity = 0.0
    for k in tl.static_range(K):
        expert = tl.argmax(score, axis=0, tie_break_left=True)
        weight = tl.sum(tl.where(column == expert, probability, 0.0), axis=0) * scale
        score = tl.where(column == expert, -float("inf"), score)
        is_identity = expert >= routed
        identity += tl.where(is_identity, weight, 0.0)
        tl.store(weights_ptr + t * K + k, tl.where(is_identity, 0.0, weight))
        tl.store(ids_ptr + t * K + k, tl.where(is_identity, -1, expert).to(tl.int32))
    tl.store(identity_ptr + t, identity)


def route(
    logits: torch.Tensor, bias: torch.Tensor, top_k: int, routed: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _route_sum(logits.contiguous()[None], bias, top_k, routed, scale)


def route_tokens(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    top_k: int,
    routed: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _route_sum(_partial_logits(x.contiguous(), weight), bias, top_k, routed, scale)


def _partial_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[splits, T, E]: one summand of the logits for each BLOCK_K columns of the weight."""
    (tokens, width), experts = x.shape, weight.shape[0]
    splits = triton.cdiv(width, BLOCK_K)
    parts = torch.empty((splits, tokens, experts), dtype=torch.float32, device=x.device)
    rows = min(max(triton.next_power_of_2(tokens), LEAST_ROWS), MOST_ROWS)
    if tokens:
        _logits_kernel[(triton.cdiv(experts, BLOCK_E), splits, triton.cdiv(tokens, rows))](
            x,
            weight.contiguous(),
            parts,
            tokens,
            width,
            experts,
            BLOCK_T=rows,
            BLOCK_E=BLOCK_E,
            BLOCK_K=BLOCK_K,
            num_warps=4,
            **pdl_options(x),
        )
    return parts


def _route_sum(
    parts: torch.Tensor, bias: torch.Tensor, top_k: int, routed: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    splits, tokens, experts = parts.shape
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=parts.device)
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=parts.device)
    identity = torch.empty(tokens, dtype=torch.float32, device=parts.device)
    if tokens:
        _route_kernel[(tokens,)](
            parts,
            bias,
            weights,
            ids,
            identity,
            tokens,
            experts,
            routed,
            scale,
            SPLITS=splits,
            K=top_k,
            BLOCK=triton.next_power_of_2(experts),
            num_warps=2 if splits == 1 else 4,  # a 16-byte load a split and thread
            **pdl_options(parts),
        )
    return weights, ids, identity

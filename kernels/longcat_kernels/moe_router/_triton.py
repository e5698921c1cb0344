"""Routing in Triton: at most two launches from hidden states to what the expert GEMMs take.

`_logits_kernel`       one program per tile of the router's weight, which it reads once and whole,
                       before the kernel ahead has ended: products with up to 64 tokens, summed over
                       the tile's columns. 144 programs at LongCat-Flash-Lite's sizes.
`_many_logits_kernel`  more tokens than FEW_TOKENS, as a GEMM: one program per tile of the logits,
                       whose sums stay in registers for all columns.
`_route_kernel`        one program per token: adds the tiles' sums in their order (no atomics: every
                       run has the same bits). Each warp then finds the best k of a group of experts
                       without waiting for the others, and the groups' lists are merged by counting.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.kv_pool import PADDING_SLOT
from longcat_kernels.moe_router.reference import Options

# A tile is one warpgroup's wgmma with its parts in registers: 64 experts, since with fewer each
# warp repeats the others' products and spills, and 128 columns, so that every SM of 132 has a tile.
BLOCK_E, BLOCK_K = 64, 128
# Tokens of a program: wgmma's least, and those beyond which the weight is read again, from L2.
LEAST_ROWS, MOST_ROWS = 8, 64
# Up to here 24 partial sums a token cost no more than a GEMM that keeps few SMs busy: whole, 47 and
# 52 us at 1,024 tokens, 71 and 56 at 1,536, 347 and 175 at 8,192 on an H200.
FEW_TOKENS = 1024
# The GEMM's tile. Of 13 that ran on an H200 none is faster from 1,536 tokens on.
TILE = {"BLOCK_E": 64, "BLOCK_T": 128, "BLOCK_K": 64, "STAGES": 3}
# Experts of a warp where latency counts: 16 bytes a lane and load.
GROUP = 128
# Where ptxas chooses it keeps 6 of 24 loads in flight, that is, waits for L2 four times.
REGISTERS = 128
LOWEST = tl.constexpr(-3.4028234663852886e38)
TAKEN = tl.constexpr(-(2**31))  # below the key of every score
PADDING = tl.constexpr(PADDING_SLOT)


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
def _many_logits_kernel(
    x_ptr,
    weight_ptr,
    logits_ptr,  # [tokens, experts]
    tokens,
    width,
    experts,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    expert = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    t = tl.program_id(1).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    live, exists = expert < experts, t < tokens
    column = tl.arange(0, BLOCK_K)
    weights = weight_ptr + expert[:, None] * width + column[None, :]
    rows = x_ptr + t[:, None] * width + column[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    total = tl.zeros([BLOCK_E, BLOCK_T], tl.float32)
    for start in tl.range(0, width, BLOCK_K, num_stages=STAGES):
        inside = column < width - start
        weight = tl.load(weights + start, mask=live[:, None] & inside[None, :], other=0.0)
        x = tl.load(rows + start, mask=exists[:, None] & inside[None, :], other=0.0)
        # Tensor cores cut off what they add to a larger sum: 1.3e-4 over all columns, 3e-6 so.
        total += _exact_dot(weight, x)
    cells = logits_ptr + t[None, :] * experts + expert[:, None]
    tl.store(cells, total, mask=live[:, None] & exists[None, :])


@triton.jit
def _key(score):
    """int32 in the order of fp32 scores: a warp finds the largest integer in one instruction, the
    largest fp32 number in ten. -0.0 has a key of its own, but no score is: 0.0 + -0.0 is 0.0."""
    bits = tl.where(score >= LOWEST, score, LOWEST).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _best(key, column, value, K: tl.constexpr, SLOTS: tl.constexpr):
    """The best of each group (row of key) in order, the lowest column first among equal keys: their
    keys, columns and values, [groups, SLOTS]. A group too small for top_k ends in TAKEN keys."""
    slot = tl.arange(0, SLOTS)[None, :]
    keys = tl.full([key.shape[0], SLOTS], TAKEN, tl.int32)
    columns, values = tl.zeros_like(keys), tl.zeros_like(keys)
    bits = value.to(tl.int32, bitcast=True)  # their sum with zeros is exact, for NaN too
    # Unrolled, a round is 31 instructions, where a loop has 51 and a jump; but they are 5 KB more
    # to fetch (21 KB from logits), which behind GEMMs may be in no cache of the SM.
    for k in tl.static_range(K):
        top = tl.max(key, axis=1)[:, None]
        first = tl.min(tl.where(key == top, column, 2**30), axis=1)[:, None]
        here = column == first
        keys, columns = tl.where(slot == k, top, keys), tl.where(slot == k, first, columns)
        values = tl.where(slot == k, tl.sum(tl.where(here, bits, 0), axis=1)[:, None], values)
        key = tl.where(here, TAKEN, key)
    return keys, columns, values.to(tl.float32, bitcast=True)


@triton.jit
def _place(keys):
    """Place of each group's best among all groups': its slot, and those of other groups before it.
    Columns rise with the group, so the lower group comes first among equal keys. What is TAKEN
    comes behind the top_k live ones."""
    groups: tl.constexpr = keys.shape[0]
    slots: tl.constexpr = keys.shape[1]
    group = tl.arange(0, groups)[None, :, None]
    other = (tl.arange(0, groups * slots) // slots)[:, None, None]
    least = keys[None, :, :] + (other > group).to(tl.int32)
    before = (keys.reshape(groups * slots)[:, None, None] >= least) & (other != group)
    return tl.arange(0, slots)[None, :] + tl.sum(before.to(tl.int32), axis=0)


@triton.jit(
    do_not_specialize=["tokens", "first", "held"], do_not_specialize_on_alignment=["slots_ptr"]
)
def _route_kernel(
    parts_ptr,  # [SPLITS, tokens, experts]: logits are their sum
    bias_ptr,
    weights_ptr,
    ids_ptr,
    identity_ptr,
    tokens,
    experts,
    slots_ptr,
    routed,
    first,  # of `held` experts, whose places among them are their ids
    held,
    scale,
    PADDED: tl.constexpr,  # rows whose slot is PADDING
    SPLITS: tl.constexpr,
    K: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    SLOTS: tl.constexpr,
    PDL: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, GROUPS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    live = column < experts
    bias = tl.load(bias_ptr + column, mask=live, other=0.0)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if PADDED:
        padding = tl.load(slots_ptr + t) == PADDING
    cells = parts_ptr + t * experts + column
    logits = tl.load(cells, mask=live, other=-float("inf"))
    for _ in tl.static_range(1, SPLITS):
        cells += tokens * experts
        logits += tl.load(cells, mask=live, other=0.0)
    exponent = tl.exp(logits - tl.max(tl.max(logits, axis=1), axis=0))
    probability = exponent / tl.sum(tl.sum(exponent, axis=1), axis=0)
    # NaN counts as the lowest score, above what is chosen already and what is no expert, so that k
    # different experts are found whatever the logits.
    key = tl.where(live, _key(probability + bias), TAKEN)
    keys, expert, weight = _best(key, column, probability * scale, K, SLOTS)
    place = _place(keys)
    chosen, is_identity, here = place < K, expert >= routed, expert - first
    elsewhere = (here < 0) | (here >= held)  # identity experts too
    if PADDED:
        weight, elsewhere = tl.where(padding, 0.0, weight), elsewhere | padding
    tl.store(ids_ptr + t * K + place, tl.where(elsewhere, -1, here), mask=chosen)
    tl.store(weights_ptr + t * K + place, tl.where(is_identity, 0.0, weight), mask=chosen)
    identity = tl.where(chosen & is_identity, weight, 0.0)
    tl.store(identity_ptr + t, tl.sum(tl.sum(identity, axis=1), axis=0))


def route(
    logits: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return route_sum(logits.contiguous()[None], bias, options)


def route_tokens(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = few_logits if len(x) <= FEW_TOKENS else many_logits
    return route_sum(logits(x.contiguous(), weight.contiguous()), bias, options)


def few_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[splits, T, E]: one summand of the logits for each BLOCK_K columns of the weight."""
    (tokens, width), experts = x.shape, weight.shape[0]
    splits = triton.cdiv(width, BLOCK_K)
    parts = torch.empty((splits, tokens, experts), dtype=torch.float32, device=x.device)
    rows = min(max(triton.next_power_of_2(tokens), LEAST_ROWS), MOST_ROWS)
    if tokens:
        _logits_kernel[(triton.cdiv(experts, BLOCK_E), splits, triton.cdiv(tokens, rows))](
            x,
            weight,
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


def many_logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[1, T, E], for any T."""
    (tokens, width), experts = x.shape, weight.shape[0]
    logits = torch.empty((1, tokens, experts), dtype=torch.float32, device=x.device)
    if tokens:
        grid = triton.cdiv(experts, TILE["BLOCK_E"]), triton.cdiv(tokens, TILE["BLOCK_T"])
        _many_logits_kernel[grid](
            x, weight, logits, tokens, width, experts, **TILE, num_warps=4, **pdl_options(x)
        )
    return logits


def route_sum(
    parts: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    splits, tokens, experts = parts.shape
    top_k, slots = options.top_k, options.slots
    weights = torch.empty((tokens, top_k), dtype=torch.float32, device=parts.device)
    ids = torch.empty((tokens, top_k), dtype=torch.int32, device=parts.device)
    identity = torch.empty(tokens, dtype=torch.float32, device=parts.device)
    # From logits, thousands of tokens count more than one: one warp has no lists to merge.
    groups = triton.next_power_of_2(triton.cdiv(experts, GROUP)) if splits > 1 else 1
    if tokens:
        _route_kernel[(tokens,)](
            parts,
            bias,
            weights,
            ids,
            identity,
            tokens,
            experts,
            bias if slots is None else slots,
            options.routed,
            *options.named,
            options.scale,
            PADDED=slots is not None,
            SPLITS=splits,
            K=top_k,
            GROUPS=groups,
            WIDTH=triton.next_power_of_2(triton.cdiv(experts, groups)),
            SLOTS=triton.next_power_of_2(top_k),
            num_warps=groups,
            maxnreg=REGISTERS if splits > 1 else None,
            **pdl_options(parts),
        )
    return weights, ids, identity

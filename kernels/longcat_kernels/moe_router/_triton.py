"""Routing in Triton: at most two launches from hidden states to what the expert GEMMs take.

`_logits_kernel`       up to FEW_TOKENS tokens: one program per tile of the router's weight, which
                       makes the products with up to 64 tokens, summed over the tile's columns.
                       144 programs at LongCat-Flash-Lite's sizes.
`_many_logits_kernel`  more tokens, as a GEMM: one program per tile of the logits.
`_route_kernel`        one program per token: adds up the tiles' sums, takes the softmax, and finds
                       the best k experts.

launch.py has tiles, grids and arguments.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longcat_kernels.kv_pool import PADDING_SLOT

LOWEST = tl.constexpr(-3.4028234663852886e38)  # of fp32, without -inf
TAKEN = tl.constexpr(-(2**31))  # below the key of every score
PADDING = tl.constexpr(PADDING_SLOT)


@triton.jit
def _top(number):
    """The first 8 of an fp32 number's 24 bits."""
    return (number.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _exact_dot(weight, x):
    """weight [E, K] fp32 times x [T, K] bf16, as [E, T], in fp32's precision on tensor cores."""
    # Three bf16 numbers of 8 bits each hold the 24 bits of an fp32 number, so each product is exact
    # and their sum has fp32's precision. 64 tokens take 24 wgmma, where fp32 would take 4,096 FMAs
    # a thread; and the sums are the same in every batch.
    high = _top(weight)
    middle = _top(weight - high)
    low = weight - high - middle
    x = tl.trans(x)
    # The smallest parts first: tensor cores cut off what they add to a larger sum.
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
    # The tile is read once, whole, and before the wait: no kernel of a step writes the weight. x
    # comes after the wait, and so does the store, whose memory an earlier kernel may still read.
    cells = weight_ptr + expert[:, None] * width + column[None, :]
    weight = tl.load(cells, mask=live[:, None] & inside[None, :], other=0.0)
    if PDL:
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
        # The sum over blocks is in fp32 registers. If tensor cores added to it, what they cut off
        # would be an error of 1.3e-4 over all columns; it is 3e-6 this way.
        total += _exact_dot(weight, x)
    cells = logits_ptr + t[None, :] * experts + expert[:, None]
    tl.store(cells, total, mask=live[:, None] & exists[None, :])


@triton.jit
def _key(score):
    """int32 numbers in the order of fp32 scores, NaN as the lowest of them."""
    # A warp finds the largest integer in one instruction, the largest fp32 number in ten. -0.0 has
    # a key of its own, but no score is -0.0: 0.0 + -0.0 is 0.0. NaN compares false.
    bits = tl.where(score >= LOWEST, score, LOWEST).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _best(key, column, value, K: tl.constexpr, SLOTS: tl.constexpr):
    """The best K of each group (row of key) in order, the lowest column first among equal keys: the
    keys, columns and values, [groups, SLOTS]. A group of fewer than K experts ends in TAKEN keys.
    """
    slot = tl.arange(0, SLOTS)[None, :]
    keys = tl.full([key.shape[0], SLOTS], TAKEN, tl.int32)
    columns, values = tl.zeros_like(keys), tl.zeros_like(keys)
    # Values are picked by a sum with zeros. As integers this is exact for NaN too.
    bits = value.to(tl.int32, bitcast=True)
    # Unrolled, a round is 31 instructions; in a loop it is 51 and a jump. The price is 5 KB more of
    # instructions (21 KB from logits), which no cache of the SM may hold behind a GEMM.
    for k in tl.static_range(K):
        top = tl.max(key, axis=1)[:, None]
        first = tl.min(tl.where(key == top, column, 2**30), axis=1)[:, None]
        here = column == first
        keys, columns = tl.where(slot == k, top, keys), tl.where(slot == k, first, columns)
        values = tl.where(slot == k, tl.sum(tl.where(here, bits, 0), axis=1)[:, None], values)
        # The next round cannot choose this expert again.
        key = tl.where(here, TAKEN, key)
    return keys, columns, values.to(tl.float32, bitcast=True)


@triton.jit
def _place(keys):
    """The place of each group's best among the best of all groups, by counting."""
    # An entry's place is its slot in its own sorted list, plus the number of other groups' entries
    # before it. Columns rise with the group, so among equal keys the lower group comes first: the
    # key of a higher group has to be larger. TAKEN keys come behind the K live ones.
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
    bias = tl.load(bias_ptr + column, mask=live, other=0.0)  # no kernel of a step writes it
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if PADDED:
        padding = tl.load(slots_ptr + t) == PADDING
    # The tiles' sums are added in their order, without atomics: every run has the same bits.
    cells = parts_ptr + t * experts + column
    logits = tl.load(cells, mask=live, other=-float("inf"))
    for _ in tl.static_range(1, SPLITS):
        cells += tokens * experts
        logits += tl.load(cells, mask=live, other=0.0)
    exponent = tl.exp(logits - tl.max(tl.max(logits, axis=1), axis=0))
    probability = exponent / tl.sum(tl.sum(exponent, axis=1), axis=0)
    # Columns that are no expert, and experts chosen already, have the key TAKEN. NaN counts as the
    # lowest score and is above them, so that K different experts are found whatever the logits.
    key = tl.where(live, _key(probability + bias), TAKEN)
    # One warp for each group of experts (each row of `column`): it finds its best K without waiting
    # for the others. Then the groups' lists are merged.
    keys, expert, weight = _best(key, column, probability * scale, K, SLOTS)
    place = _place(keys)
    chosen, is_identity, here = place < K, expert >= routed, expert - first
    elsewhere = (here < 0) | (here >= held)  # true for identity experts too
    if PADDED:
        weight, elsewhere = tl.where(padding, 0.0, weight), elsewhere | padding
    tl.store(ids_ptr + t * K + place, tl.where(elsewhere, -1, here), mask=chosen)
    tl.store(weights_ptr + t * K + place, tl.where(is_identity, 0.0, weight), mask=chosen)
    identity = tl.where(chosen & is_identity, weight, 0.0)
    tl.store(identity_ptr + t, tl.sum(tl.sum(identity, axis=1), axis=0))

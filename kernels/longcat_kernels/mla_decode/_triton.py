"""MLA decode's kernels in Triton. launch.py has numbers of programs and arguments.

First launch: `_split_kernel`. The keys of all tokens are dealt in blocks to as many programs as the
GPU has SMs. Each token gets programs of its own, in proportion to its keys, so that the time
depends on the sum of all contexts and not on the longest. A program's keys are its share. It
attends with all heads of one token to its share, so that a latent is loaded once for both products.
Hopper has other kernels for this launch, `_hopper.py` and `_hopper_fp8.py`.

Second launch: `_combine_kernel` adds up a token's shares in their order. `_combine_values_kernel`
also multiplies by the value projection.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longcat_kernels.mla_prologue._triton import _quantise


@triton.jit
def shares_of(length, programs, KEYS: tl.constexpr):
    """How many programs each token of `length` keys gets: at least one, otherwise in proportion to
    its keys, and at most `programs` in all. Gluon's kernel calls it too."""
    blocks = (length + KEYS - 1) // KEYS
    # `each` is the number of blocks of a program. Rounding up per token may need too many programs:
    # then every program gets a sixteenth and one block more.
    each = tl.maximum(tl.cdiv(tl.sum(blocks, axis=0), programs), 1)
    while tl.sum((blocks + each - 1) // each, axis=0) > programs:
        each += each // 16 + 1
    return (blocks + each - 1) // each


@triton.jit
def _lengths(positions_ptr, token, tokens):
    """How many keys each token sees: 0 beyond `tokens`."""
    return tl.load(positions_ptr + token, mask=token < tokens, other=-1).to(tl.int32) + 1


@triton.jit
def share_of(positions_ptr, p, token, tokens, programs, KEYS: tl.constexpr):
    """Program p's token, and its share of the token's keys, [begin, end). The token is `tokens` if
    the program has nothing to do."""
    # From the positions on the GPU, because a captured graph's host does not know them.
    lengths = _lengths(positions_ptr, token, tokens)
    shares = shares_of(lengths, programs, KEYS)
    # Token 0 has the programs [0, ends[0]), token 1 [ends[0], ends[1]), and so on: p's token is the
    # number of tokens whose programs end at or before p.
    ends = tl.cumsum(shares, 0)
    t = tl.sum(((ends <= p) & (token < tokens)).to(tl.int32), axis=0)
    mine = token == t
    length = tl.sum(tl.where(mine, lengths, 0), axis=0)
    own = tl.maximum(tl.sum(tl.where(mine, shares, 0), axis=0), 1)
    first = tl.sum(tl.where(mine, ends, 0), axis=0) - own
    share = tl.cdiv(tl.cdiv(length, KEYS), own) * KEYS  # keys of each of this token's programs
    begin = (p - first) * share
    return t, begin, tl.minimum(length, begin + share)


@triton.jit
def _own_shares(positions_ptr, tokens, programs, t, KEYS: tl.constexpr, TOKENS: tl.constexpr):
    """Token t's first program, and how many it has."""
    token = tl.arange(0, TOKENS)
    shares = shares_of(_lengths(positions_ptr, token, tokens), programs, KEYS)
    first = tl.sum(tl.where(token < t, shares, 0), axis=0)
    return first, tl.sum(tl.where(token == t, shares, 0), axis=0)


@triton.jit
def _mean(
    partial_ptr,
    lse_ptr,
    first,
    count,
    head,
    heads,
    programs,
    column,
    RANK: tl.constexpr,
    MOST: tl.constexpr,  # shares of a token, rounded up to a power of two
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """Columns of a head's latent: the mean of its shares' latents, weighted by 2 ** lse."""
    # Weights relative to the largest, which is 1: an empty share has lse -inf and weight 0.
    share = tl.arange(0, MOST)
    lse_ptr += head * programs + first
    lse = tl.load(lse_ptr + share, mask=share < count, other=-float("inf"))
    top = tl.max(lse, axis=0)
    total = tl.sum(tl.exp2(lse - top), axis=0)
    out = tl.zeros([CHUNK, column.shape[0]], tl.float32)
    # CHUNK shares at a time, in their order, so that every run has the same bits.
    for start in tl.range(0, count, CHUNK, num_stages=AHEAD):
        some = start + tl.arange(0, CHUNK)
        live = some < count
        weight = tl.exp2(tl.load(lse_ptr + some, mask=live, other=-float("inf")) - top)
        row = (first + some) * heads + head
        cells = partial_ptr + row[:, None] * RANK + column[None, :]
        latent = tl.load(cells, mask=live[:, None], other=0.0)
        out += latent.to(tl.float32) * weight[:, None]
    return tl.sum(out, axis=0) / total


@triton.jit
def _keys(
    latents_ptr,
    ropes_ptr,
    scales_ptr,
    row,
    live,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    FP8: tl.constexpr,
):
    """The latents and rope parts of a block's rows, in bf16. row: the rows times their stride."""
    column, angle = tl.arange(0, RANK)[None, :], tl.arange(0, ROPE)[None, :]
    live, row = live[:, None], row[:, None]
    if FP8:
        c = tl.load(latents_ptr + row * 16 + column, mask=live, other=0.0)
        r = tl.load(ropes_ptr + row * 8 + angle, mask=live, other=0.0)
        scales = tl.load(scales_ptr + row * 4 + tl.arange(0, 4)[None, :], mask=live, other=0.0)
        # Scaled here, where all heads and both products share it, and rounded to bf16 like the
        # rows of `kv_rows.unpack`: a cached prefix has the same values in prefill and in decode.
        # The rounding is a twentieth of FP8's own. Scaling scores and weights instead would take a
        # third of these products at 32 heads, but four times as many weights in shared memory.
        quarters = tl.reshape(c.to(tl.float32), (c.shape[0], 4, RANK // 4)) * scales[:, :, None]
        c = tl.reshape(quarters, (c.shape[0], RANK)).to(tl.bfloat16)
    else:
        c = tl.load(latents_ptr + row + column, mask=live, other=0.0)
        r = tl.load(ropes_ptr + row + angle, mask=live, other=0.0)
    return c, r


@triton.jit(
    do_not_specialize=["tokens", "heads", "programs"],
    do_not_specialize_on_alignment=["requests_ptr", "positions_ptr", "page_stride"],
)
def _split_kernel(
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
    latent_stride,
    page_stride,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,  # rounded up to a power of two
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    KEYS: tl.constexpr,
    FP8: tl.constexpr,  # rows of the KV pool; see kv_rows for their parts and `latent_stride`
    PDL: tl.constexpr,
):
    """A share's latent for every head, and its log-sum-exp."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    p = tl.program_id(0)
    token = tl.arange(0, TOKENS)
    t, begin, end = share_of(positions_ptr, p, token, tokens, programs, KEYS)
    if t >= tokens:
        return
    head = tl.arange(0, HEADS)
    real = head < heads
    # All queries of token t stay in registers for the whole share.
    request = tl.load(requests_ptr + t // WIDTH).to(tl.int64)
    page = pages_ptr + request * page_stride
    t = t.to(tl.int64)
    nope = q_nope_ptr + t * nope_token + head[:, None] * nope_head + tl.arange(0, RANK)[None, :]
    pe = q_pe_ptr + t * pe_token + head[:, None] * pe_head + tl.arange(0, ROPE)[None, :]
    q_nope = tl.load(nope, mask=real[:, None], other=0.0)
    q_pe = tl.load(pe, mask=real[:, None], other=0.0)
    # Softmax while walking: the highest score so far, the sum of the weights relative to it, and
    # the sum of the weighted latents. Scores are in base 2 (launch.py's scale contains log2 e).
    top = tl.full([HEADS], -float("inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    out = tl.zeros([RANK, HEADS], tl.float32)
    for start in tl.range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        live = key < end
        row = tl.load(page + key, mask=live, other=0).to(tl.int64) * latent_stride
        c, r = _keys(latents_ptr, ropes_ptr, scales_ptr, row, live, RANK, ROPE, FP8)
        # Keys, then rank, are the rows of both products and heads (32) the columns, because wgmma
        # takes 64 rows or more.
        score = tl.dot(c, tl.trans(q_nope)) + tl.dot(r, tl.trans(q_pe))
        score = tl.where(live[:, None], score * scale, -float("inf"))
        # What is summed so far becomes relative to the new highest score.
        highest = tl.maximum(top, tl.max(score, axis=0))
        shrink = tl.exp2(top - highest)
        weight = tl.exp2(score - highest[None, :])
        total = total * shrink + tl.sum(weight, axis=0)
        out = out * shrink[None, :] + tl.dot(tl.trans(c), weight.to(c.dtype))
        top = highest
    tl.store(lse_ptr + head * programs + p, top + tl.log2(total), mask=real)
    # The latent of a share is bf16 between the launches: the mean over shares rounds less than the
    # result's own rounding does.
    at = (p * heads + head)[None, :] * RANK + tl.arange(0, RANK)[:, None]
    total = tl.where(total > 0.0, total, 1.0)  # an empty share divides 0 by 1
    out = (out / total[None, :]).to(partial_ptr.dtype.element_ty)
    tl.store(partial_ptr + at, out, mask=real[None, :])


@triton.jit(
    do_not_specialize=["tokens", "heads", "programs"],
    do_not_specialize_on_alignment=["positions_ptr"],
)
def _combine_kernel(
    partial_ptr,
    lse_ptr,
    positions_ptr,
    out_ptr,
    tokens,
    heads,
    programs,
    KEYS: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    MOST: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    # Before the wait, because the first launch does not write the positions.
    first, count = _own_shares(positions_ptr, tokens, programs, row // heads, KEYS, TOKENS)
    if PDL:
        tl.extra.cuda.gdc_wait()
    out = _mean(
        *(partial_ptr, lse_ptr, first, count, row % heads, heads, programs, column),
        *(RANK, MOST, CHUNK, AHEAD),
    )
    tl.store(out_ptr + row.to(tl.int64) * RANK + column, out.to(out_ptr.dtype.element_ty))


@triton.jit(
    do_not_specialize=["tokens", "heads", "programs"],
    do_not_specialize_on_alignment=["positions_ptr"],
)
def _combine_values_kernel(
    partial_ptr,
    lse_ptr,
    positions_ptr,
    weight_ptr,  # [H, RANK, VALUES] of any strides
    out_ptr,
    tokens,
    heads,
    programs,
    weight_head,
    weight_rank,
    weight_column,
    out_scales_ptr,  # [heads, padded] if QUANTISE
    padded,
    VALUES: tl.constexpr,
    KEYS: tl.constexpr,
    TOKENS: tl.constexpr,
    RANK: tl.constexpr,
    MOST: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    QUANTISE: tl.constexpr,  # a head's VALUES are one group of the next projection's input
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    head = row % heads
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    # The projection's weights and the positions are read before the wait, under the tail of the
    # first launch, which writes neither.
    cells = weight_ptr + head.to(tl.int64) * weight_head + rank[:, None] * weight_rank
    cells += column[None, :] * weight_column
    weight = tl.load(cells, mask=(column < VALUES)[None, :], other=0.0)
    first, count = _own_shares(positions_ptr, tokens, programs, row // heads, KEYS, TOKENS)
    if PDL:
        tl.extra.cuda.gdc_wait()
    latent = _mean(
        *(partial_ptr, lse_ptr, first, count, head, heads, programs, rank),
        *(RANK, MOST, CHUNK, AHEAD),
    )
    # Rounded like the latent that `_combine_kernel` stores, so that both ways give the same values.
    latent = latent.to(weight.dtype).to(tl.float32)
    out = tl.sum(latent[:, None] * weight.to(tl.float32), axis=0)
    target = out_ptr + row.to(tl.int64) * VALUES + column
    if QUANTISE:
        out = out.to(weight.dtype).to(tl.float32)  # rounded first, as if it had been written
        scale = out_scales_ptr + head * padded + row // heads
        out = _quantise(out, scale, 0, VALUES, COLUMNS, VALUES)
    tl.store(target, out.to(out_ptr.dtype.element_ty), mask=column < VALUES)

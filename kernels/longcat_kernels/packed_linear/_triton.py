"""Dense projections of one to four tokens from Marlin's 4-bit weights, in Triton.

A program has all inputs of 8, 16, 32 or 64 outputs: those of LANES neighbouring i of a tile
(`marlin.py` has the letters). They are 64 bytes in a row for each i and tile, and so are their
scales. A thread has one i and one q, so it reads 16 bytes of a tile, the words of all j. They hold
4 inputs of 8 outputs. SLOTS threads with the same i and q share the inputs: each has SPAN tiles in
a row of every piece. These lie in one group, so that sums are multiplied by a scale once for
4 * SPAN products.

A value is unpacked in a logical operation and a multiplication that also adds -8. In a clock a
multiprocessor of Hopper does 128 multiplications, 64 logical operations or 16 conversions of
integers: for `gate_up` conversions alone would take 10 us, where its weights are read in 4.1 us.
"""

from __future__ import annotations

import triton
import triton.language as tl

from longcat_kernels.small_linear._triton import _gate


@triton.jit
def _words(
    w_ptr, s_ptr, tile, first, n, K: tl.constexpr, GROUP: tl.constexpr, LANES: tl.constexpr,
    SLOTS: tl.constexpr, SPAN: tl.constexpr, piece: tl.constexpr,
):  # fmt: skip
    """A piece: SPAN tensors [SLOTS, LANES, 4 q, 4 j] of words, and one of scales, h in a word."""
    slot = tl.arange(0, SLOTS)[:, None, None, None]
    i = first + tl.arange(0, LANES)[None, :, None, None]
    q = tl.arange(0, 4)[None, None, :, None]
    j = tl.arange(0, 4)[None, None, None, :]
    k_tile = (piece * SLOTS + slot) * SPAN
    # The scales are the same for each q, and in the registers where the words are.
    cells = s_ptr + ((k_tile * 16 // GROUP) * (n // 2) + tile * 32 + i * 4 + j + q * 0)
    words = ()
    if K % (SLOTS * SPAN * 16) == 0:
        for u in tl.static_range(SPAN):
            at = w_ptr + ((k_tile + u) * (n * 2) + tile * 128 + (i * 4 + q) * 4 + j)
            words += (tl.load(at, eviction_policy="evict_first"),)
        words += (tl.load(cells),)
    else:
        live = k_tile * 16 < K
        for u in tl.static_range(SPAN):
            at = w_ptr + ((k_tile + u) * (n * 2) + tile * 128 + (i * 4 + q) * 4 + j)
            words += (tl.load(at, mask=live, other=0, eviction_policy="evict_first"),)
        words += (tl.load(cells, mask=live, other=0),)
    return words


@triton.jit
def _append(
    pieces, w_ptr, s_ptr, tile, first, n, K: tl.constexpr, GROUP: tl.constexpr,
    LANES: tl.constexpr, SLOTS: tl.constexpr, SPAN: tl.constexpr, piece: tl.constexpr,
):  # fmt: skip
    """pieces, and number `piece` if there is one."""
    if piece * SLOTS * SPAN * 16 < K:
        pieces += _words(w_ptr, s_ptr, tile, first, n, K, GROUP, LANES, SLOTS, SPAN, piece)
    return pieces


@triton.jit
def _append_x(
    xs, x_ptr, tokens, stride, K: tl.constexpr, LANES: tl.constexpr, SLOTS: tl.constexpr,
    SPAN: tl.constexpr, TOKENS: tl.constexpr, piece: tl.constexpr,
):  # fmt: skip
    """xs, and for each tile of a piece, token and e: [SLOTS, LANES, 4 q], o in a word."""
    if piece * SLOTS * SPAN * 16 < K:
        slot = tl.arange(0, SLOTS)[:, None, None]
        # An element a thread: more would lie in other threads than the words.
        cell = tl.arange(0, 4)[None, None, :] + tl.arange(0, LANES)[None, :, None] * 0
        k_tile = (piece * SLOTS + slot) * SPAN
        for u in tl.static_range(SPAN):
            for t in tl.static_range(TOKENS):
                for e in tl.static_range(2):
                    at = x_ptr + t * stride + (k_tile + u) * 8 + e * 4 + cell
                    if TOKENS == 1 and K % (SLOTS * SPAN * 16) == 0:
                        xs += (tl.load(at),)
                    else:
                        xs += (tl.load(at, mask=(k_tile * 16 < K) & (t < tokens), other=0),)
    return xs


@triton.jit
def _low(word):
    """The first of two bf16 in a word."""
    return (word << 16).to(tl.float32, bitcast=True)


@triton.jit
def _high(word):
    return (word & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _value(word, M: tl.constexpr):
    """Value m of a word, minus 8, times 2^-22, exactly. Read as fp32, its bits are the subnormal
    number value * 2^(4 place - 149). A mantissa has places 0 to 4."""
    PLACE: tl.constexpr = M if M < 5 else M - 3
    if M >= 5:
        word = word >> 12
    bits = word & (15 << (4 * PLACE))
    return bits.to(tl.float32, bitcast=True) * (2.0 ** (127 - 4 * PLACE)) - 8.0 * 2.0**-22


@triton.jit
def _multiply_add(totals, piece, xs, SPAN: tl.constexpr, TOKENS: tl.constexpr):
    """totals: for each token and h [SLOTS, LANES, 4 q, 4 j], plus the products of a piece."""
    sums = ()
    for _ in tl.static_range(2 * TOKENS):
        sums += (tl.zeros_like(totals[0]),)
    for u in tl.static_range(SPAN):
        for m in tl.static_range(8):
            value = _value(piece[u], m)
            added = ()
            for t in tl.static_range(TOKENS):
                pair = xs[(u * TOKENS + t) * 2 + m % 2][:, :, :, None]
                x = _low(pair) if m < 4 else _high(pair)
                for h in tl.static_range(2):
                    if h == m // 2 % 2:
                        added += (sums[t * 2 + h] + value * x,)
                    else:
                        added += (sums[t * 2 + h],)
            sums = added
    scaled = ()
    for t in tl.static_range(TOKENS):
        scaled += (totals[t * 2] + sums[t * 2] * _low(piece[SPAN]),)
        scaled += (totals[t * 2 + 1] + sums[t * 2 + 1] * _high(piece[SPAN]),)
    return scaled


@triton.jit
def _zeros(LANES: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr):
    totals = ()
    for _ in tl.static_range(2 * TOKENS):
        totals += (tl.zeros([SLOTS, LANES, 4, 4], dtype=tl.float32),)
    return totals


@triton.jit
def _results(totals, LANES: tl.constexpr, SLOTS: tl.constexpr, TOKENS: tl.constexpr):
    """[LANES, 4 j, TOKENS, 2 h]: one sum over the threads instead of one for each token and h."""
    if TOKENS == 4:
        first = tl.join(tl.join(totals[0], totals[4]), tl.join(totals[2], totals[6]))
        second = tl.join(tl.join(totals[1], totals[5]), tl.join(totals[3], totals[7]))
    elif TOKENS == 2:
        first, second = tl.join(totals[0], totals[2]), tl.join(totals[1], totals[3])
    else:
        first, second = totals[0], totals[1]
    both = tl.join(first, second)
    both = tl.reshape(both, [SLOTS, LANES, 4, 4, TOKENS, 2])
    return tl.sum(tl.sum(both, axis=2), axis=0) * 2.0**22


@triton.jit(do_not_specialize=["tokens"])
def _packed_kernel(
    x_ptr,  # [tokens, K / 2] words of two bf16, rows `stride` words apart
    w_ptr,  # [K / 16, 2 * outputs] words
    s_ptr,  # [K / GROUP, outputs / 2] words of two bf16
    out_ptr,  # [tokens, n]
    tokens,
    stride,
    n,  # outputs, or half of them if SWIGLU
    K: tl.constexpr,
    GROUP: tl.constexpr,
    SWIGLU: tl.constexpr,
    LANES: tl.constexpr,
    SLOTS: tl.constexpr,  # threads are SLOTS * LANES * 4
    SPAN: tl.constexpr,
    AHEAD: tl.constexpr,
    TOKENS: tl.constexpr,  # 1, 2 or 4, of which the first `tokens` are real
    PDL: tl.constexpr,
):
    # The next kernel may start at once: it waits for this one before it reads a result.
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    PIECES: tl.constexpr = (K + SLOTS * SPAN * 16 - 1) // (SLOTS * SPAN * 16)
    X_AHEAD: tl.constexpr = 2  # pieces of x that are asked for ahead
    HELD: tl.constexpr = SPAN + 1  # tensors of a piece
    X_HELD: tl.constexpr = SPAN * TOKENS * 2
    tile = tl.program_id(0) // (8 // LANES)
    first = tl.program_id(0) % (8 // LANES) * LANES
    width = n * 2 if SWIGLU else n
    up = tile + n // 64
    pieces = ()
    ups = ()
    for i in tl.static_range(AHEAD):
        pieces = _append(pieces, w_ptr, s_ptr, tile, first, width, K, GROUP, LANES, SLOTS, SPAN, i)
        if SWIGLU:
            ups = _append(ups, w_ptr, s_ptr, up, first, width, K, GROUP, LANES, SLOTS, SPAN, i)
    if PDL:
        tl.extra.cuda.gdc_wait()
    xs = ()
    for i in tl.static_range(X_AHEAD):
        xs = _append_x(xs, x_ptr, tokens, stride, K, LANES, SLOTS, SPAN, TOKENS, i)
    totals = _zeros(LANES, SLOTS, TOKENS)
    up_totals = totals
    for i in tl.static_range(PIECES):
        totals = _multiply_add(totals, pieces, xs, SPAN, TOKENS)
        pieces = _append(
            pieces[HELD:], w_ptr, s_ptr, tile, first, width, K, GROUP, LANES, SLOTS, SPAN,
            i + AHEAD,
        )  # fmt: skip
        if SWIGLU:
            up_totals = _multiply_add(up_totals, ups, xs, SPAN, TOKENS)
            ups = _append(
                ups[HELD:], w_ptr, s_ptr, up, first, width, K, GROUP, LANES, SLOTS, SPAN,
                i + AHEAD,
            )  # fmt: skip
        xs = _append_x(
            xs[X_HELD:], x_ptr, tokens, stride, K, LANES, SLOTS, SPAN, TOKENS, i + X_AHEAD
        )
    results = _results(totals, LANES, SLOTS, TOKENS)
    if SWIGLU:
        results = _gate(results, _results(up_totals, LANES, SLOTS, TOKENS))
    i = first + tl.arange(0, LANES)[:, None, None, None]
    j = tl.arange(0, 4)[None, :, None, None]
    t = tl.arange(0, TOKENS)[None, None, :, None]
    h = tl.arange(0, 2)[None, None, None, :]
    cells = out_ptr + t * n + (tile * 64 + j * 16 + h * 8 + i)
    tl.store(cells, results.to(out_ptr.dtype.element_ty), mask=(t < tokens) & (i >= 0))

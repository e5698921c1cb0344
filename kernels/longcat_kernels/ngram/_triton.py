"""The n-gram kernel in Triton: one program per token, all tables and look-backs in registers.

One kernel serves ids and rows, windows and prefills: `ROWS` false stores the ids, true gathers the
rows that they name; `WIDTH` 0 is a prefill. Either way the same launch also appends to the ring.
launch.py has the arguments.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class _Text(NamedTuple):
    """Pointers to what a token's predecessors are read from."""

    tokens: Any
    ring: Any


class _Params(NamedTuple):
    """`HashParams` as pointers; powers: [tables, N]."""

    powers: Any
    moduli: Any
    offsets: Any
    eos: Any
    inverses: Any
    tables: Any


class _Rows(NamedTuple):
    """`RowTable` as a pointer, and its columns and stride in elements."""

    elements: Any
    columns: Any
    stride: Any


@triton.jit
def _token_at(text, j: tl.constexpr, t, offset, slot, position, RING: tl.constexpr):
    """The token j >= 1 before token t, and whether there is one."""
    exists = position >= j
    in_batch = offset >= j
    near = tl.load(text.tokens + t - j, mask=exists & in_batch, other=0).to(tl.int64)
    cell = text.ring + slot * RING + (position - j) % RING
    far = tl.load(cell, mask=exists & (offset < j), other=0).to(tl.int64)
    return tl.where(in_batch, near, far), exists


@triton.jit
def _hash(
    text,
    params,
    t,
    offset,  # of token t in its request's part of the batch
    slot,
    position,
    RING: tl.constexpr,
    N: tl.constexpr,
    EOS: tl.constexpr,
    BLOCK: tl.constexpr,  # tables, rounded up to a power of two
):
    """The ids of token t, [BLOCK]."""
    column = tl.arange(0, BLOCK)
    live = column < params.tables
    modulus = tl.load(params.moduli + column, mask=live, other=2)
    inverse = tl.load(params.inverses + column, mask=live, other=0)
    first_row = tl.load(params.offsets + column, mask=live, other=0)
    total = tl.zeros([BLOCK], dtype=tl.int64)
    alive = True  # no EOS and no start of the text met so far
    for j in tl.static_range(N):
        if j == 0:
            token = tl.load(text.tokens + t).to(tl.int64)
        else:
            token, exists = _token_at(text, j, t, offset, slot, position, RING)
            alive = alive & exists
            for e in tl.static_range(EOS):
                alive = alive & (token != tl.load(params.eos + e))
            token = tl.where(alive, token, 0)
        power = tl.load(params.powers + column * N + j, mask=live, other=0)
        total += token * power  # below 2^63: see make_hash_params
    # total % modulus by one multiplication with floor(2^64 / modulus): the high half of the product
    # is the quotient, or one less. Four 64-bit `%` a row took 3.7 us of a launch of 5.2 us.
    quotient = tl.umulhi(total.to(tl.uint64), inverse.to(tl.uint64)).to(tl.int64)
    rest = total - quotient * modulus
    return tl.where(rest >= modulus, rest - modulus, rest) + first_row


@triton.jit
def _emit(
    ids,
    rows,
    t,
    out_ptr,
    tables,
    ROWS: tl.constexpr,
    FORMAT: tl.constexpr,  # of the rows: "plain", "fp8" or "int4"
    GROUP: tl.constexpr,  # values of an int4 row that share a scale
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,  # columns, rounded up to a power of two
):
    """Stores the ids of token t, or the rows that they name: out [T, tables, columns]."""
    column = tl.arange(0, BLOCK)
    live = column < tables
    if ROWS:
        source = rows.elements + ids * rows.stride
        target = out_ptr + (t * tables + column) * rows.columns
        if FORMAT == "int4":
            _copy_int4(source, target, live, rows.columns, GROUP, COLUMNS // 2)
        else:
            _copy(source, target, live, rows.columns, FORMAT, COLUMNS)
    else:
        tl.store(out_ptr + t * tables + column, ids, mask=live)


@triton.jit
def _copy(source, target, live, columns, FORMAT: tl.constexpr, COLUMNS: tl.constexpr):
    """source, target: [BLOCK] pointers to rows, of which the `live` ones exist."""
    c = tl.arange(0, COLUMNS)
    inside = live[:, None] & (c < columns)[None, :]
    values = tl.load(source[:, None] + c[None, :], mask=inside, other=0.0)
    if FORMAT == "fp8":  # the row's fp32 scale is behind its values
        scale_ptr = (source + columns).to(tl.pointer_type(tl.float32))
        values = values.to(tl.float32) * tl.load(scale_ptr, mask=live, other=0.0)[:, None]
    values = values.to(target.dtype.element_ty)
    tl.store(target[:, None] + c[None, :], values, mask=inside)


@triton.jit
def _copy_int4(source, target, live, columns, GROUP: tl.constexpr, HALF: tl.constexpr):
    """As `_copy`. A byte has a column of the first half of the row, and one of the second."""
    c = tl.arange(0, HALF)
    half = columns // 2
    inside = live[:, None] & (c < half)[None, :]
    packed = tl.load(source[:, None] + c[None, :], mask=inside, other=0).to(tl.int32)
    scales = (source + half).to(tl.pointer_type(tl.bfloat16))
    for part in tl.static_range(2):
        column = part * half + c
        code = (packed >> 4 * part) & 15
        scale_ptr = scales[:, None] + (column // GROUP)[None, :]
        scale = tl.load(scale_ptr, mask=inside, other=0.0).to(tl.float32)
        # Two's complement of four bits: 8 to 15 are -8 to -1.
        values = ((code ^ 8) - 8).to(tl.float32) * scale
        tl.store(target[:, None] + column[None, :], values.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _request_of(t, starts_ptr, requests):
    """The request of a prefill that token t belongs to: the last whose start is not behind t."""
    low = 0
    high = requests
    while high - low > 1:
        middle = (low + high) // 2
        before = tl.load(starts_ptr + middle) <= t
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return tl.cast(low, tl.int64)


@triton.jit
def _append_tail(text, t, slot, first, length, RING: tl.constexpr):
    """Writes the last R of a request's `length` tokens, from token t at position `first` on."""
    tail = length - 1 - tl.arange(0, RING)
    token = tl.load(text.tokens + t + tail, mask=tail >= 0, other=0)
    cell = text.ring + slot * RING + (first + tail) % RING
    tl.store(cell, token.to(tl.int32), mask=tail >= 0)


# Where a batch lies in a larger tensor and how many requests it has must not make a new variant.
_ANYWHERE = ["tokens_ptr", "positions_ptr", "slots_ptr", "starts_ptr", "lengths_ptr"]


@triton.jit(do_not_specialize=["requests"], do_not_specialize_on_alignment=_ANYWHERE)
def _ngram_kernel(
    tokens_ptr,
    positions_ptr,
    slots_ptr,
    starts_ptr,  # [B], read only when WIDTH == 0, as lengths
    lengths_ptr,
    ring_ptr,
    powers_ptr,
    moduli_ptr,
    offsets_ptr,
    eos_ptr,
    inverses_ptr,
    rows_ptr,  # read only when ROWS
    out_ptr,
    requests,
    tables,
    columns,
    stride,
    RING: tl.constexpr,
    N: tl.constexpr,
    EOS: tl.constexpr,
    WIDTH: tl.constexpr,  # tokens a request; 0: ragged
    ROWS: tl.constexpr,
    FORMAT: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:  # the kernel before may have sampled the tokens
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    text = _Text(tokens_ptr, ring_ptr)
    params = _Params(powers_ptr, moduli_ptr, offsets_ptr, eos_ptr, inverses_ptr, tables)
    rows = _Rows(rows_ptr, columns, stride)
    t = tl.program_id(0).to(tl.int64)
    count = 1  # tokens of this program, from t on
    length = WIDTH
    if WIDTH > 0:
        request = t // WIDTH
        offset = t % WIDTH
    else:
        request = _request_of(t, starts_ptr, requests)
        offset = t - tl.load(starts_ptr + request)
        length = tl.load(lengths_ptr + request).to(tl.int32)
        # A request may be longer than the ring. Its first program, the leader, does the N - 1
        # tokens that look back into the ring, so that it alone knows when the ring may be
        # overwritten. All other programs find their predecessors in the batch.
        if offset == 0:
            count = min(max(length, 1), N - 1)
        elif offset < N - 1:  # the leader's token; behind a short request: padding
            count = tl.where(offset < length, 0, 1)
    slot = tl.load(slots_ptr + request).to(tl.int64)
    first = tl.load(positions_ptr + t).to(tl.int64)
    for i in range(count):
        ids = _hash(text, params, t + i, offset + i, slot, first + i, RING, N, EOS, BLOCK)
        _emit(ids, rows, t + i, out_ptr, tables, ROWS, FORMAT, GROUP, BLOCK, COLUMNS)
    if WIDTH > 0:
        # A window and its look-back are at most R positions (`window_width`): no program overwrites
        # a cell that another one reads, and each writes its own token without waiting.
        current = tl.load(tokens_ptr + t)
        tl.store(ring_ptr + slot * RING + first % RING, current.to(tl.int32))
    elif (offset == 0) & (length > 0):
        tl.debug_barrier()  # every warp of the leader has read the cells that are overwritten now
        _append_tail(text, t, slot, first, length, RING)

"""The n-gram kernels in Triton: one program per token, all tables and look-backs in registers.

`ROWS` false stores the ids, true gathers the rows that they name (`ngram_rows`), in the same
launch. Either way one launch also appends to the ring:
  window   a request's window and its look-back are at most R positions, so no program overwrites
           what another reads, and each writes its own token;
  extend   a request may be longer than the ring. Its first program, the leader, does the n-1 tokens
           that look back into the ring and, after a barrier, appends the last R; every other one
           finds its predecessors in the batch. A token finds its request by bisection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options

if TYPE_CHECKING:
    from longcat_kernels.ngram_ids import HashTable
    from longcat_kernels.row_table import RowTable


@triton.jit
def _hash(
    tokens_ptr,
    ring_ptr,
    powers_ptr,  # [tables, N]
    moduli_ptr,
    offsets_ptr,
    eos_ptr,
    inverses_ptr,
    t,
    offset,  # of token t in its request's part of the batch
    slot,
    position,
    tables,
    RING: tl.constexpr,
    N: tl.constexpr,
    EOS: tl.constexpr,
    BLOCK: tl.constexpr,  # tables, rounded up to a power of two
):
    column = tl.arange(0, BLOCK)
    live = column < tables
    modulus = tl.load(moduli_ptr + column, mask=live, other=2)
    inverse = tl.load(inverses_ptr + column, mask=live, other=0)
    first_row = tl.load(offsets_ptr + column, mask=live, other=0)
    total = tl.zeros([BLOCK], dtype=tl.int64)
    alive = True
    for j in tl.static_range(N):
        if j == 0:
            token = tl.load(tokens_ptr + t).to(tl.int64)
        else:
            exists = position >= j
            in_batch = offset >= j
            near = tl.load(tokens_ptr + t - j, mask=exists & in_batch, other=0).to(tl.int64)
            cell = ring_ptr + slot * RING + (position - j) % RING
            far = tl.load(cell, mask=exists & (offset < j), other=0).to(tl.int64)
            token = tl.where(in_batch, near, far)
            alive = alive & exists
            for e in tl.static_range(EOS):
                alive = alive & (token != tl.load(eos_ptr + e))
            token = tl.where(alive, token, 0)
        power = tl.load(powers_ptr + column * N + j, mask=live, other=0)
        total += token * power  # below 2^63: see make_hash_table
    quotient = tl.umulhi(total.to(tl.uint64), inverse.to(tl.uint64)).to(tl.int64)
    rest = total - quotient * modulus
    return tl.where(rest >= modulus, rest - modulus, rest) + first_row


@triton.jit
def _emit(
    ids,
    t,
    out_ptr,
    rows_ptr,
    tables,
    columns,
    stride,
    ROWS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,  # columns, rounded up to a power of two
):
    """Store the ids of token t, or the rows that they name: out [T, tables, columns]."""
    column = tl.arange(0, BLOCK)
    if ROWS:
        c = tl.arange(0, COLUMNS)
        inside = (column < tables)[:, None] & (c < columns)[None, :]
        base = ids * stride
        values = tl.load(rows_ptr + base[:, None] + c[None, :], mask=inside, other=0.0)
        if SCALED:  # a row of fp8 values is followed by its fp32 scale
            at = (rows_ptr + base + columns).to(tl.pointer_type(tl.float32))
            scale = tl.load(at, mask=column < tables, other=0.0)
            values = values.to(tl.float32) * scale[:, None]
        target = out_ptr + (t * tables + column)[:, None] * columns + c[None, :]
        tl.store(target, values.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(out_ptr + t * tables + column, ids, mask=column < tables)


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
    SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    t = tl.program_id(0).to(tl.int64)
    count = 1
    length = WIDTH
    if WIDTH > 0:
        request = t // WIDTH
        offset = t % WIDTH
    else:
        low = 0
        high = requests
        while high - low > 1:
            middle = (low + high) // 2
            before = tl.load(starts_ptr + middle) <= t
            low = tl.where(before, middle, low)
            high = tl.where(before, high, middle)
        request = tl.cast(low, tl.int64)
        offset = t - tl.load(starts_ptr + request)
        length = tl.load(lengths_ptr + request).to(tl.int32)
        if offset == 0:
            count = min(max(length, 1), N - 1)
        elif offset < N - 1:  # the leader's; beyond a short request: padding
            count = tl.where(offset < length, 0, 1)
    slot = tl.load(slots_ptr + request).to(tl.int64)
    first = tl.load(positions_ptr + t).to(tl.int64)
    for i in range(count):
        ids = _hash(
            tokens_ptr,
            ring_ptr,
            powers_ptr,
            moduli_ptr,
            offsets_ptr,
            eos_ptr,
            inverses_ptr,
            t + i,
            offset + i,
            slot,
            first + i,
            tables,
            RING,
            N,
            EOS,
            BLOCK,
        )
        _emit(ids, t + i, out_ptr, rows_ptr, tables, columns, stride, ROWS, SCALED, BLOCK, COLUMNS)
    if WIDTH > 0:
        current = tl.load(tokens_ptr + t)
        tl.store(ring_ptr + slot * RING + first % RING, current.to(tl.int32))
    elif (offset == 0) & (length > 0):
        tl.debug_barrier()  # every warp has read the cells that are overwritten now
        tail = length - 1 - tl.arange(0, RING)
        token = tl.load(tokens_ptr + t + tail, mask=tail >= 0, other=0)
        cell = ring_ptr + slot * RING + (first + tail) % RING
        tl.store(cell, token.to(tl.int32), mask=tail >= 0)


def launch(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
    width: int,
    rows: RowTable | None = None,
) -> torch.Tensor:
    """width 0: ragged. Returns ids [T, tables], or with `rows` their rows [T, tables * columns]."""
    tables = table.moduli.shape[0]
    tokens, positions, slots = tokens.contiguous(), positions.contiguous(), slots.contiguous()
    shape = (tokens.shape[0], tables * rows.columns if rows else tables)
    dtype = rows.dtype if rows else torch.int64
    out = torch.empty(shape, dtype=dtype, device=tokens.device)
    columns = rows.columns if rows else 1
    if tokens.shape[0]:
        _ngram_kernel[(tokens.shape[0],)](
            tokens,
            positions,
            slots,
            starts,
            lengths,
            ring,
            table.powers,
            table.moduli,
            table.offsets,
            table.eos,
            table.inverses,
            rows.elements if rows else out,
            out,
            slots.shape[0],
            tables,
            columns,
            rows.stride if rows else 1,
            RING=ring.shape[1],
            N=table.n,
            EOS=table.eos.shape[0],
            WIDTH=width,
            ROWS=rows is not None,
            SCALED=rows is not None and rows.scaled,
            BLOCK=triton.next_power_of_2(tables),
            COLUMNS=triton.next_power_of_2(columns),
            num_warps=4 if rows else 1,
            **pdl_options(tokens),
        )
    return out

"""The n-gram id op in Triton: one program per token, all tables and look-backs in registers.

A window step (decode, verify) is one launch that also appends to the ring: a request's window and
its look-back are at most R positions, so no program overwrites what another reads. A prefill hashes
in one launch and appends in a second, since there a request may be longer than the ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from longcat_kernels.ngram_ids import reference

if TYPE_CHECKING:
    from longcat_kernels.ngram_ids import HashTable


@triton.jit
def _ids_kernel(
    tokens_ptr,
    positions_ptr,
    slots_ptr,
    starts_ptr,  # [B], read only when WIDTH == 0
    requests_ptr,  # [T], read only when WIDTH == 0
    ring_ptr,
    powers_ptr,  # [tables, N]
    moduli_ptr,
    offsets_ptr,
    eos_ptr,
    ids_ptr,  # [T, tables] int64
    tables,
    RING: tl.constexpr,
    N: tl.constexpr,
    EOS: tl.constexpr,
    WIDTH: tl.constexpr,  # tokens a request; 0: ragged
    BLOCK: tl.constexpr,  # tables, rounded up to a power of two
):
    t = tl.program_id(0).to(tl.int64)
    if WIDTH > 0:
        request = t // WIDTH
        offset = t % WIDTH
    else:
        request = tl.load(requests_ptr + t)
        offset = t - tl.load(starts_ptr + request)
    slot = tl.load(slots_ptr + request).to(tl.int64)
    position = tl.load(positions_ptr + t).to(tl.int64)
    column = tl.arange(0, BLOCK)
    live = column < tables
    modulus = tl.load(moduli_ptr + column, mask=live, other=1)

    current = tl.load(tokens_ptr + t).to(tl.int64)
    total = tl.zeros([BLOCK], dtype=tl.int64)
    alive = True
    for j in tl.static_range(N):
        if j == 0:
            token = current
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
        total += token * power % modulus
    first_row = tl.load(offsets_ptr + column, mask=live, other=0)
    tl.store(ids_ptr + t * tables + column, total % modulus + first_row, mask=live)
    if WIDTH > 0:
        tl.store(ring_ptr + slot * RING + position % RING, current.to(tl.int32))


def _launch(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    starts: torch.Tensor,
    requests: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
    width: int,
) -> torch.Tensor:
    tables = table.moduli.shape[0]
    tokens, positions, slots = tokens.contiguous(), positions.contiguous(), slots.contiguous()
    ids = torch.empty((tokens.shape[0], tables), dtype=torch.int64, device=tokens.device)
    if tokens.shape[0]:
        _ids_kernel[(tokens.shape[0],)](
            tokens,
            positions,
            slots,
            starts,
            requests,
            ring,
            table.powers,
            table.moduli,
            table.offsets,
            table.eos,
            ids,
            tables,
            RING=ring.shape[1],
            N=table.n,
            EOS=table.eos.shape[0],
            WIDTH=width,
            BLOCK=triton.next_power_of_2(tables),
            num_warps=1,
        )
    return ids


def window_ids(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
) -> torch.Tensor:
    width = max(tokens.shape[0] // max(slots.shape[0], 1), 1)
    return _launch(tokens, positions, slots, slots, slots, ring, table, width)


def extend_ids(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
) -> torch.Tensor:
    index = torch.arange(tokens.shape[0], device=tokens.device)
    starts = starts.long()
    request = torch.searchsorted(starts, index, right=True) - 1
    ids = _launch(tokens, positions, slots, starts, request, ring, table, width=0)
    offsets, limits = index - starts[request], lengths.long()[request]
    reference.append_tail(tokens, positions, slots[request], offsets, limits, ring)
    return ids

"""The n-gram id op in plain torch: what the kernels must equal bit for bit, and the CPU path.

Same contract as the public functions in `__init__`; no host synchronisation on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from longcat_kernels.ngram_ids import HashTable


def hash_context(context: torch.Tensor, table: HashTable) -> torch.Tensor:
    """context [T, n] int64, look-back j in column j, -1 where none -> ids [T, tables]."""
    stops = context < 0
    stops[:, 1:] |= torch.isin(context[:, 1:], table.eos)
    context = torch.where(stops.cumsum(1) > 0, 0, context)
    terms = context[:, None, :] * table.powers % table.moduli[:, None]
    return terms.sum(-1) % table.moduli + table.offsets


def _context(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    offsets: torch.Tensor,
    ring: torch.Tensor,
    n: int,
) -> torch.Tensor:
    """Each token's look-back j: from the batch if j <= its offset there, else from the ring."""
    count, back = tokens.shape[0], torch.arange(n, device=tokens.device)
    here = (torch.arange(count, device=tokens.device)[:, None] - back).clamp_min(0)
    there = positions[:, None] - back
    in_ring = ring[slots[:, None], there % ring.shape[1]].long()
    found = torch.where(back <= offsets[:, None], tokens.long()[here], in_ring)
    return torch.where(there < 0, -1, found)


def window_ids(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
) -> torch.Tensor:
    width = max(tokens.shape[0] // max(slots.shape[0], 1), 1)
    rows = slots.repeat_interleave(width, output_size=tokens.shape[0])
    offsets = torch.arange(tokens.shape[0], device=tokens.device) % width
    ids = hash_context(_context(tokens, positions, rows, offsets, ring, table.n), table)
    ring[rows, positions % ring.shape[1]] = tokens.to(ring.dtype)
    return ids


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
    request = torch.searchsorted(starts.long(), index, right=True) - 1
    offsets, rows = index - starts.long()[request], slots[request]
    ids = hash_context(_context(tokens, positions, rows, offsets, ring, table.n), table)
    append_tail(tokens, positions, rows, offsets, lengths.long()[request], ring)
    return ids


def append_tail(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    offsets: torch.Tensor,
    lengths: torch.Tensor,
    ring: torch.Tensor,
) -> None:
    """Write each request's last R tokens; everything else (padding too) lands in slot 0, which no
    request owns: a masked write would need the host to know how many there are."""
    size = ring.shape[1]
    tail = (offsets < lengths) & (offsets >= lengths - size)
    ring[torch.where(tail, rows, 0), positions % size] = tokens.to(ring.dtype)

"""The n-gram operations in plain torch: what the kernel must equal bit for bit, and the CPU path.

Same contract as the public functions in `__init__`; no host synchronisation on any device.
"""

from __future__ import annotations

import torch

from longcat_kernels.ngram.inputs import HashParams, Prefill, Window
from longcat_kernels.row_table import RowTable


def window_rows(
    window: Window, ring: torch.Tensor, params: HashParams, rows: RowTable
) -> torch.Tensor:
    return gather(window_ids(window, ring, params), rows)


def extend_rows(
    prefill: Prefill, ring: torch.Tensor, params: HashParams, rows: RowTable
) -> torch.Tensor:
    return gather(extend_ids(prefill, ring, params), rows)


def gather(row_ids: torch.Tensor, rows: RowTable) -> torch.Tensor:
    """row_ids [T, tables] -> [T, tables * columns] of rows.dtype, on the device of row_ids."""
    values = torch.nn.functional.embedding(row_ids.to(rows.storage.device), rows.storage)
    return rows.values(values).flatten(1).to(row_ids.device)


def window_ids(window: Window, ring: torch.Tensor, params: HashParams) -> torch.Tensor:
    tokens, positions, slots = window
    width = max(tokens.shape[0] // max(slots.shape[0], 1), 1)
    token_slots = slots.repeat_interleave(width, output_size=tokens.shape[0])
    offsets = torch.arange(tokens.shape[0], device=tokens.device) % width
    context = _context(Window(tokens, positions, token_slots), offsets, ring, params.n)
    ids = hash_context(context, params)
    ring[token_slots, positions % ring.shape[1]] = tokens.to(ring.dtype)
    return ids


def extend_ids(prefill: Prefill, ring: torch.Tensor, params: HashParams) -> torch.Tensor:
    tokens, positions, slots, starts, lengths = prefill
    index = torch.arange(tokens.shape[0], device=tokens.device)
    request = torch.searchsorted(starts.long(), index, right=True) - 1
    offsets = index - starts.long()[request]
    each = Window(tokens, positions, slots[request])
    ids = hash_context(_context(each, offsets, ring, params.n), params)
    _append_tail(each, offsets, lengths.long()[request], ring)
    return ids


def hash_context(context: torch.Tensor, params: HashParams) -> torch.Tensor:
    """context [T, n] int64, look-back j in column j, -1 where there is none -> ids [T, tables]."""
    stops = context < 0
    stops[:, 1:] |= torch.isin(context[:, 1:], params.eos)
    context = torch.where(stops.cumsum(1) > 0, 0, context)
    terms = context[:, None, :] * params.powers % params.moduli[:, None]
    return terms.sum(-1) % params.moduli + params.offsets


def _context(each: Window, offsets: torch.Tensor, ring: torch.Tensor, n: int) -> torch.Tensor:
    """Each token's look-back j: from the batch if j <= its offset there, else from the ring.

    each: windows of width 1, so one slot a token. offsets: [T], a token's place among those that
    its request feeds.
    """
    tokens, positions, slots = each
    count, back = tokens.shape[0], torch.arange(n, device=tokens.device)
    in_batch = (torch.arange(count, device=tokens.device)[:, None] - back).clamp_min(0)
    position = positions[:, None] - back
    in_ring = ring[slots[:, None], position % ring.shape[1]].long()
    context = torch.where(back <= offsets[:, None], tokens.long()[in_batch], in_ring)
    return torch.where(position < 0, -1, context)


def _append_tail(
    each: Window, offsets: torch.Tensor, lengths: torch.Tensor, ring: torch.Tensor
) -> None:
    """Writes each request's last R tokens. All others, padding too, are written to slot 0, which no
    request owns: a masked write would need the host to know how many there are."""
    tokens, positions, slots = each
    size = ring.shape[1]
    tail = (offsets < lengths) & (offsets >= lengths - size)
    ring[torch.where(tail, slots, 0), positions % size] = tokens.to(ring.dtype)

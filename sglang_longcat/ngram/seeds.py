"""Predecessors that a prefill cannot find in its slot's ring, read off the scheduler's requests.

For a request whose new tokens start at position s > 0, the n-1 tokens at s-n+1 .. s-1. They are on
the host (prompt tokens, or output tokens of an earlier life of the request). Requests that are
decoding inside a mixed batch are left out: their last token may still be on its way from the GPU,
and the ring already holds what came before. Not for speculative verification, whose windows
continue a slot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


class Seeds(NamedTuple):
    """Host int64 [3, N], pinned where there is a GPU: slots, positions, tokens."""

    values: torch.Tensor


def collect_seeds(batch: ScheduleBatch, order: int) -> Seeds | None:
    """The seeds of a prefill batch, at most order-1 per request; None when there are none."""
    if not batch.forward_mode.is_extend_without_speculative():
        return None
    decoding = {id(request) for request in batch.decoding_reqs or ()}
    entries = [
        (request.kv.req_pool_idx, position, request.full_untruncated_fill_ids[position])
        for request, start in zip(batch.reqs, batch.prefix_lens, strict=False)
        if id(request) not in decoding
        for position in range(max(0, start - order + 1), start)
    ]
    if not entries:
        return None
    values = torch.tensor(entries, dtype=torch.int64).t().contiguous()
    return Seeds(values.pin_memory() if torch.cuda.is_available() else values)

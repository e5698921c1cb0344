"""Seeds: predecessors that a forward cannot find in its slot's ring, from the scheduler's requests.

If the new tokens of a request start at position s > 0, its seeds are the n-1 tokens at s-n+1 ..
s-1. They are on the host: prompt tokens, or output tokens from before a retraction. Two kinds of
requests need seeds: prefills, and, on a decode worker of prefill/decode disaggregation, requests
that arrive with their KV and never run a prefill there. Requests that decode inside a mixed batch
get none: their last token may still be on its way from the GPU, and the ring already holds the
tokens before it. A verify window gets none either: it continues what the slot's ring holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

# Slot -> (position, token) pairs. A dict by slot, so that the slot's last owner wins: two entries
# for one cell of the ring would be written in no particular order.
Cells = dict[int, list[tuple[int, int]]]


class Seeds(NamedTuple):
    """Host int64 [3, N], pinned where there is a GPU: slots, positions, tokens."""

    values: torch.Tensor


def collect_seeds(batch: ScheduleBatch, order: int, arrived: Cells | None = None) -> Seeds | None:
    """The seeds of a forward, at most order-1 per request; None when there are none.

    arrived: those of the requests that `arrived_cells` saw since the last forward.
    """
    cells = {**(arrived or {}), **_prefill_cells(batch, order)}
    entries = [(slot, *pair) for slot, pairs in cells.items() for pair in pairs]
    if not entries:
        return None
    values = torch.tensor(entries, dtype=torch.int64).t().contiguous()
    return Seeds(values.pin_memory() if torch.cuda.is_available() else values)


def arrived_cells(batch: ScheduleBatch, order: int) -> Cells:
    """For requests that came with their KV (ForwardMode.PREBUILT): the order-1 tokens before the
    last one known, which the first decode step feeds."""
    return {request.kv.req_pool_idx: _before_last(request, order) for request in batch.reqs}


def _prefill_cells(batch: ScheduleBatch, order: int) -> Cells:
    if not batch.forward_mode.is_extend_without_speculative():
        return {}
    decoding = {id(request) for request in batch.decoding_reqs or ()}
    return {
        request.kv.req_pool_idx: [
            (position, request.full_untruncated_fill_ids[position])
            for position in range(max(0, start - order + 1), start)
        ]
        for request, start in zip(batch.reqs, batch.prefix_lens, strict=False)
        if id(request) not in decoding
    }


def _before_last(request: Req, order: int) -> list[tuple[int, int]]:
    """Positions and tokens. The prompt may be 256K tokens long: it is not copied."""
    prompt, output = request.origin_input_ids, request.output_ids
    last = len(prompt) + len(output) - 1
    return [
        (p, prompt[p] if p < len(prompt) else output[p - len(prompt)])
        for p in range(max(0, last - order + 1), last)
    ]

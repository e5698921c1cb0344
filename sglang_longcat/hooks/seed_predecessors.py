"""Give each forward the tokens just before it, if they were not computed in this request slot.

Why: after a prefix from the radix cache, a resumed or retracted request, or a reused slot, the ring
lacks the n-1 tokens that the first new token is hashed with. Only the scheduler's request objects
know these tokens, and a ForwardBatch keeps no reference to the requests.
Upstream: model_executor/forward_batch_info.py, ForwardBatch.init_new (called once per forward).
Remove when: ForwardBatch carries the requests' token ids, or a generic per-model batch hook exists.
"""

from __future__ import annotations

from typing import Any

TARGET = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"


def apply(
    result: Any, cls: Any, batch: Any, model_runner: Any, *_args: Any, **_kwargs: Any
) -> None:
    from sglang_longcat.ngram.seeds import collect_seeds
    from sglang_longcat.ngram.state import NgramStateMixin

    model = model_runner.model
    if isinstance(model, NgramStateMixin):
        result.longcat_seeds = collect_seeds(batch, model.ngram_order, model.take_arrivals())

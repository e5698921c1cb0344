"""Note the requests that reach a decode worker together with their KV; the next forward seeds them.

Why: in prefill/decode disaggregation a decode worker runs no prefill, so nothing puts the last
tokens of the prompt into the slot's ring before the first decode step. The same is true of a
request that returns from a retraction there: its KV is restored, not computed again.
Upstream: disaggregation/decode.py, SchedulerDisaggregationDecodeMixin.get_new_prebuilt_batch, which
every such request passes on its way into the running batch, after its slot was assigned. The tokens
are kept on the host until the next forward, so that only the forward stream writes the ring.
Remove when: ForwardBatch carries the requests' token ids, or prebuilt batches reach the model.
"""

from __future__ import annotations

from typing import Any

TARGET = (
    "sglang.srt.disaggregation.decode.SchedulerDisaggregationDecodeMixin.get_new_prebuilt_batch"
)


def apply(result: Any, scheduler: Any, *_args: Any, **_kwargs: Any) -> None:
    from sglang_longcat.ngram.seeds import arrived_cells
    from sglang_longcat.ngram.state import NgramStateMixin

    model = scheduler.tp_worker.model_runner.model
    if result is not None and isinstance(model, NgramStateMixin):
        model.note_arrivals(arrived_cells(result, model.ngram_order))

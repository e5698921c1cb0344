"""Return no logprob for an answer without tokens.

Why: with `max_new_tokens` 0 and speculation SGLang samples a token, drops it, and returns its
logprob. Without speculation it samples none.
Upstream: managers/scheduler_components/output_streamer.py, _GenerationStreamAccumulator.accept,
`logprob_end = max(len(output_ids_), 1)`.
Remove when: SGLang sends as many logprobs as tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TARGET = (
    "sglang.srt.managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept"
)
# Not output_token_ids_logprobs: /v1/score asks for no token and reads those of the next one there.
_LISTS = ("output_token_logprobs", "output_top_logprobs")


def apply(original: Callable[..., None], accumulator: Any, *, req: Any) -> None:
    from sglang_longcat.host.hf_config import is_serving_us

    if req.return_logprob and req.finished() and req.finished_len == 0 and is_serving_us():
        for name in _LISTS:
            for part in ("val", "idx"):
                getattr(req.logprob, f"{name}_{part}").clear()
    original(accumulator, req=req)

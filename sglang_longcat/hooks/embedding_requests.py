"""Answer a request for embeddings, classes or a ranking with HTTP 400, whatever it contains.

Why: the model generates text. SGLang says so only after it has worked with the request's fields,
and an absurd value among them ends as HTTP 500.
Upstream: managers/io_struct.py, EmbeddingReqInput.normalize_batch_and_arguments, the first thing
that is done with a request of /v1/embeddings, /v1/rerank, /v1/classify, /encode and /classify.
Remove when: SGLang asks first whether the model gives embeddings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_longcat.requests.check import BadRequest

TARGET = "sglang.srt.managers.io_struct.EmbeddingReqInput.normalize_batch_and_arguments"


def apply(original: Callable[[Any], None], request: Any) -> None:
    from sglang_longcat.host.hf_config import is_serving_us

    if is_serving_us():
        raise BadRequest(
            "LongCat-Flash-Lite generates text; it gives no embeddings, classes or rankings. "
            "Send /v1/chat/completions, /v1/completions or /generate."
        )
    original(request)

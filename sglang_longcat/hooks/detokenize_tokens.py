"""Answer token ids that cannot be turned into text with HTTP 400.

Why: /v1/detokenize answers 500 for a negative id, and drops an id beyond the vocabulary.
Upstream: entrypoints/openai/serving_tokenize.py,
OpenAIServingDetokenize._convert_to_internal_request, which the route calls first. It answers a
ValueError with 400.
Remove when: SGLang checks these ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_longcat.requests.check import check_tokens

TARGET = (
    "sglang.srt.entrypoints.openai.serving_tokenize"
    ".OpenAIServingDetokenize._convert_to_internal_request"
)


def apply(original: Callable[..., Any], serving: Any, request: Any, *args: Any) -> Any:
    from sglang_longcat.host.hf_config import is_served_by_us

    model = serving.tokenizer_manager.model_config
    if is_served_by_us(model.hf_config):
        check_tokens(request.tokens, vocab=model.vocab_size)
    return original(serving, request, *args)

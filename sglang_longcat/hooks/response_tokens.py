"""Let `max_output_tokens` of /v1/responses mean as many tokens as it says.

Why: SGLang takes two off. A client that asks for 5 gets 3, and 1 is refused as -1.
Upstream: entrypoints/openai/protocol.py, ResponsesRequest.to_sampling_params, "Headroom for
BOS/EOS". /v1/chat/completions takes nothing off.
Remove when: to_sampling_params keeps max_output_tokens.
"""

from __future__ import annotations

from typing import Any

TARGET = "sglang.srt.entrypoints.openai.protocol.ResponsesRequest.to_sampling_params"
_HEADROOM = 2


def apply(
    params: dict[str, Any], request: Any, most: int | None = None, *_args: Any, **_kwargs: Any
) -> dict[str, Any]:
    """most: what the caller allows, if it says."""
    from sglang_longcat.host.hf_config import is_serving_us

    wanted = [tokens for tokens in (request.max_output_tokens, most) if tokens is not None]
    if wanted and is_serving_us():
        assert params["max_new_tokens"] == min(wanted) - _HEADROOM
        params["max_new_tokens"] = min(wanted)
    return params

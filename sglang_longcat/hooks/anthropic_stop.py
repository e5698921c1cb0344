"""Say in an answer of /v1/messages which of its `stop_sequences` ended it.

Why: Anthropic's API ends such an answer with stop_reason "stop_sequence" and names the sequence.
SGLang says "end_turn", as if the model had finished.
Upstream: entrypoints/anthropic/serving.py, AnthropicServing._handle_non_streaming, whose
_convert_response does not look at matched_stop. `anthropic_stream_stop` does the same for streams.
Remove when: _convert_response sets stop_reason "stop_sequence".
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Any

TARGET = "sglang.srt.entrypoints.anthropic.serving.AnthropicServing._handle_non_streaming"


def apply(
    original: Callable[..., Awaitable[Any]],
    serving: Any,
    chat_request: Any,
    request: Any,
    raw_request: Any,
) -> Awaitable[Any]:
    from sglang_longcat.host.hf_config import is_serving_us

    if request.stop_sequences and is_serving_us():
        serving = _naming_the_stop(serving, request.stop_sequences)
    return original(serving, chat_request, request, raw_request)


def _naming_the_stop(serving: Any, sequences: list[str]) -> Any:
    """A copy of SGLang's handler for one request."""
    named = copy.copy(serving)

    def convert(answer: Any) -> Any:
        message = serving._convert_response(answer)
        choice = answer.choices[0] if answer.choices else None
        if choice and choice.finish_reason == "stop" and choice.matched_stop in sequences:
            message.stop_reason, message.stop_sequence = "stop_sequence", choice.matched_stop
        return message

    named._convert_response = convert
    return named

"""Say in a stream of /v1/messages which of its `stop_sequences` ended it.

Why: as in `anthropic_stop`, for streams.
Upstream: entrypoints/anthropic/serving.py, AnthropicServing._generate_anthropic_stream. It reads
SGLang's own chat stream, whose last chunk has matched_stop, and drops it.
Remove when: its message_delta has stop_reason "stop_sequence".
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

TARGET = "sglang.srt.entrypoints.anthropic.serving.AnthropicServing._generate_anthropic_stream"
_END = "event: message_delta\n"


def apply(
    original: Callable[..., AsyncIterator[str]],
    serving: Any,
    adapted: Any,
    chat_request: Any,
    request: Any,
    raw_request: Any,
) -> AsyncIterator[str]:
    from sglang_longcat.host.hf_config import is_serving_us

    if not request.stop_sequences or not is_serving_us():
        return original(serving, adapted, chat_request, request, raw_request)
    watched = copy.copy(serving)  # for one request
    watched.openai_serving_chat = chat = _WatchedChat(serving.openai_serving_chat)
    frames = original(watched, adapted, chat_request, request, raw_request)
    return _name_the_stop(frames, chat, request.stop_sequences)


class _WatchedChat:
    """SGLang's chat handler, which remembers what ended its stream."""

    def __init__(self, chat: Any) -> None:
        self._chat = chat
        self.matched: object = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chat, name)

    async def _generate_chat_stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[str]:
        async for line in self._chat._generate_chat_stream(*args, **kwargs):
            if '"finish_reason":"stop"' in line:
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    self.matched = choice["matched_stop"]
            yield line


async def _name_the_stop(
    frames: AsyncIterator[str], chat: _WatchedChat, sequences: list[str]
) -> AsyncIterator[str]:
    async for frame in frames:
        if frame.startswith(_END) and chat.matched in sequences:
            event = json.loads(frame.removeprefix(_END).removeprefix("data: "))
            event["delta"] |= {"stop_reason": "stop_sequence", "stop_sequence": chat.matched}
            frame = f"{_END}data: {json.dumps(event)}\n\n"
        yield frame

"""Count the reasoning tokens that an answer has, no more and no fewer.

Why: SGLang counts before it applies a stop, so with speculation reasoning_tokens exceeds
completion_tokens. It counts all tokens of an answer that a request with thinking got without any
<longcat_think>, and none where the model opens it itself.
Upstream: managers/scheduler_components/batch_result_processor.py, _maybe_update_reasoning_tokens,
which runs before managers/schedule_batch.py, Req.update_finish_state. The hook is on the latter.
Remove when: SGLang counts what its reasoning parser returns as reasoning, after the stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Any

from sglang_longcat.tool_parser.scan import CALL, END_THINK, THINK, could_become

TARGET = "sglang.srt.managers.schedule_batch.Req.update_finish_state"
_ENDS = (END_THINK, CALL)
_LONGEST = max(map(len, _ENDS))  # characters; a token has at least one


class _Phase(Enum):
    UNDECIDED = auto()  # the answer may still open with THINK
    THINKING = auto()
    OVER = auto()


class ReasoningCounter:
    """Counts the tokens of one answer up to the end of its reasoning, tags included. The tags may
    be one token each or, under a grammar, many."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._seen, self._tokens = 0, 0
        opened = self._decode(prompt[-_LONGEST:]).rstrip().endswith(THINK)
        self._phase = _Phase.THINKING if opened else _Phase.UNDECIDED

    def count(self, output: Sequence[int]) -> int:
        """The reasoning tokens in `output`, all tokens so far."""
        fresh, self._seen = len(output) - self._seen, len(output)
        if self._phase is _Phase.UNDECIDED:
            fresh = len(output)
            self._open(output)
        if self._phase is _Phase.THINKING:
            self._tokens = self._think(output, fresh)
        return min(self._tokens, len(output))

    def _open(self, output: Sequence[int]) -> None:
        text = self._decode(output).lstrip()
        if text.startswith(THINK):
            self._phase = _Phase.THINKING
        elif not could_become(text, THINK):
            self._phase = _Phase.OVER

    def _think(self, output: Sequence[int], fresh: int) -> int:
        if not any(self._may_end(token) for token in output[len(output) - fresh :]):
            return len(output)
        start = max(0, len(output) - fresh - _LONGEST)
        for end in range(len(output) - fresh + 1, len(output) + 1):
            text = self._decode(output[start:end])
            if END_THINK in text:
                self._phase = _Phase.OVER
                return end
            if CALL in text:
                self._phase = _Phase.OVER
                return self._before_call(output[start:end], text.index(CALL)) + start
        return len(output)

    def _may_end(self, token: int) -> bool:
        """Whether it has the last character of both tags. Decoding every token would cost 50 us."""
        return ">" in str(self._tokenizer.convert_ids_to_tokens(int(token)))

    def _before_call(self, tokens: Sequence[int], characters: int) -> int:
        return max(
            (n for n in range(len(tokens)) if len(self._decode(tokens[:n])) <= characters),
            default=0,
        )

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)


def apply(result: None, request: Any, *_args: Any, **_kwargs: Any) -> None:
    """Set request.reasoning_tokens by what the client gets of the answer."""
    if not hasattr(request, "longcat_reasoning"):
        request.longcat_reasoning = _counter(request)
    if request.longcat_reasoning is not None:
        output = request.output_ids_through_stop
        request.reasoning_tokens = request.longcat_reasoning.count(output)


def _counter(request: Any) -> ReasoningCounter | None:
    from sglang.srt.runtime_context import get_serving

    from sglang_longcat.host.hf_config import is_serving_us
    from sglang_longcat.tool_parser import NAME

    if get_serving().reasoning_parser != NAME or request.tokenizer is None:
        return None
    served = is_serving_us()
    return ReasoningCounter(request.tokenizer, request.origin_input_ids) if served else None


def register() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, apply, HookType.AFTER)

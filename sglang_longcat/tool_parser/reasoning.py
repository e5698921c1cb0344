"""`--reasoning-parser longcat`: the text in <longcat_think> is reasoning.

Owns: where an answer's reasoning begins. SGLang's base class does the rest, and the model decides
whether it thinks. `reasoning_tokens` counts the tokens.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.parser.reasoning_parser import BaseReasoningFormatDetector, StreamingParseResult

from sglang_longcat.tool_parser.scan import CALL, END_THINK, THINK, could_become


class LongcatReasoningDetector(BaseReasoningFormatDetector):
    """Reasoning opens an answer, or it was opened at the end of the prompt. An answer that begins
    with other text is content from its start, also if the request asks for thinking: nothing else
    could be in `content`. A tool call ends reasoning that was left open."""

    def __init__(
        self,
        stream_reasoning: bool = True,
        force_reasoning: bool = False,
        continue_final_message: bool = False,
        previous_content: str = "",
        force_nonempty_content: bool = False,
        tokenizer: Any = None,
    ) -> None:
        super().__init__(
            THINK,
            END_THINK,
            force_reasoning=force_reasoning and opens_reasoning(tokenizer),
            stream_reasoning=stream_reasoning,
            tool_start_token=CALL,
            continue_final_message=continue_final_message,
            previous_content=previous_content,
            reasoning_default="explicit_enable_thinking",
            force_nonempty_content=force_nonempty_content,
        )
        self._answering = False  # in a stream: the answer began with other text
        self._buffer: str = ""

    def _detect_and_parse_impl(self, text: str) -> StreamingParseResult:
        if self._in_reasoning:
            return super()._detect_and_parse_impl(text)
        if not text.lstrip().startswith(THINK):
            return StreamingParseResult(normal_text=text)
        return super()._detect_and_parse_impl(text.lstrip())

    def _parse_streaming_increment_impl(self, new_text: str) -> StreamingParseResult:
        if self._in_reasoning or self.stripped_think_start:
            return super()._parse_streaming_increment_impl(new_text)
        text, self._buffer = self._buffer + new_text, ""
        if not self._answering and text.lstrip().startswith(THINK):
            return super()._parse_streaming_increment_impl(text.lstrip())
        if not self._answering and could_become(text.lstrip(), THINK):
            self._buffer = text
            return StreamingParseResult()
        self._answering = True
        return StreamingParseResult(normal_text=text)


def opens_reasoning(tokenizer: Any) -> bool:
    """Whether the chat template ends a prompt inside of <longcat_think>, if thinking is on. The
    published template does not. Without a tokenizer, the caller knows."""
    if tokenizer is None:
        return True
    if not getattr(tokenizer, "chat_template", None):
        return False
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}],
        add_generation_prompt=True,
        tokenize=False,
        enable_thinking=True,
    )
    return prompt.rstrip().endswith(THINK)

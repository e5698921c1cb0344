"""`--reasoning-parser longcat`: the text in <longcat_think> is reasoning.

Owns: which tags SGLang's base class looks for. The base class does the rest, and the model decides
whether it thinks.
"""

from __future__ import annotations

from sglang.srt.parser.reasoning_parser import BaseReasoningFormatDetector

from sglang_longcat.tool_parser.scan import CALL, END_THINK, THINK


class LongcatReasoningDetector(BaseReasoningFormatDetector):
    """A tool call ends reasoning that was left open."""

    def __init__(
        self,
        stream_reasoning: bool = True,
        force_reasoning: bool = False,
        continue_final_message: bool = False,
        previous_content: str = "",
        force_nonempty_content: bool = False,
    ) -> None:
        super().__init__(
            THINK,
            END_THINK,
            force_reasoning=force_reasoning,
            stream_reasoning=stream_reasoning,
            tool_start_token=CALL,
            continue_final_message=continue_final_message,
            previous_content=previous_content,
            reasoning_default="explicit_enable_thinking",
            force_nonempty_content=force_nonempty_content,
        )

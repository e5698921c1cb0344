"""LongCat's tool calls in text: `parser` and `values` read them, `message` makes a chat message,
`detector`, `reasoning` and `structure` connect them to SGLang.

Owns: the registration with SGLang. Everything that SGLang is not needed for works without it.
"""

from __future__ import annotations

NAME = "longcat"  # of --tool-call-parser and --reasoning-parser


def register() -> None:
    """Add both parsers to SGLang's registries. Its command line reads the choices from there."""
    from sglang.srt.function_call.function_call_parser import FunctionCallParser
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    from sglang_longcat.tool_parser.detector import LongcatDetector
    from sglang_longcat.tool_parser.reasoning import LongcatReasoningDetector

    FunctionCallParser.ToolCallParserEnum[NAME] = LongcatDetector
    ReasoningParser.DetectorMap[NAME] = LongcatReasoningDetector

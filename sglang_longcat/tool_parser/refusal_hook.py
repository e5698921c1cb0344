"""Answer tools that cannot be forced with HTTP 400, instead of forcing something else.

Why: SGLang logs an error of a detector's structural tag and then forces a JSON list of calls, which
our parser does not read. The client would get text, or `{}`.
Upstream: function_call/function_call_parser.py, FunctionCallParser.get_structure_constraint, which
catches every exception. Its caller answers a ValueError with 400.
Remove when: SGLang lets a detector's ValueError pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

TARGET = "sglang.srt.function_call.function_call_parser.FunctionCallParser.get_structure_constraint"


def apply(result: Any, parser: FunctionCallParser, *_args: object, **_kwargs: object) -> Any:
    refused: ValueError | None = getattr(parser.detector, "refused", None)
    if refused is not None:
        raise refused
    return result

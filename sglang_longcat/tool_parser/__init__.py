"""LongCat's tool calls in text, with and without SGLang.

`parser` reads calls, by means of `head`, `pairs`, `values` and `scan`, and reports `events`.
`message` makes a chat message of an answer. `detector`, `reasoning`, `structure`,
`reasoning_tokens`, `refusal_hook` and `endless_hook` connect all this to SGLang; `structure` forces
calls, by means of `pairs_grammar` and `schema`. Owns: the registration with SGLang. The files of
the first two sentences work without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_longcat.tool_parser.scan import CALL, THINK

if TYPE_CHECKING:
    from sglang.srt.parser.template_detection import TemplateDetectionContext

NAME = "longcat"  # of --tool-call-parser and --reasoning-parser
APP = "sglang_longcat.http_workers:app"
_RULES = {"TOOL_CALL_PARSER_RULES": CALL, "REASONING_PARSER_RULES": THINK}


def register() -> None:
    """Add both parsers to SGLang's registries: for its command line, for `auto`, and for the HTTP
    workers that this process may start. Idempotent."""
    from sglang.srt.environ import envs
    from sglang.srt.function_call.function_call_parser import FunctionCallParser
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    from sglang_longcat.tool_parser.detector import LongcatDetector
    from sglang_longcat.tool_parser.reasoning import LongcatReasoningDetector

    FunctionCallParser.ToolCallParserEnum[NAME] = LongcatDetector
    ReasoningParser.DetectorMap[NAME] = LongcatReasoningDetector
    _add_detection_rules()
    _add_hooks()
    os.environ.setdefault(envs.SGLANG_HTTP_SERVER_APP_PATH.name, APP)


def _add_hooks() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from sglang_longcat.tool_parser import endless_hook, refusal_hook

    for hook in (endless_hook, refusal_hook):
        if all(function is not hook.apply for _, function, _ in HookRegistry._hooks[hook.TARGET]):
            HookRegistry.register(hook.TARGET, hook.apply, HookType.AFTER)


def _add_detection_rules() -> None:
    """Add the rules by which `auto` recognises our chat template.

    Our rules go first: SGLang takes the first rule that holds, and no other model has these tags.
    Both modules are set, because the second one holds its own reference to each tuple.
    """
    from sglang.srt.parser import template_detection, template_manager

    for name, tag in _RULES.items():
        rules = getattr(template_detection, name)
        if not any(rule.name == NAME for rule in rules):
            rule = template_detection.DetectionRule(NAME, NAME, _has(tag))
            for module in (template_detection, template_manager):
                setattr(module, name, (rule, *rules))


def _has(tag: str) -> Callable[[TemplateDetectionContext], bool]:
    return lambda context: context.has_text(tag)

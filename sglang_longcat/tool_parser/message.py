"""An answer's text as a chat message, without a server.

Owns: the shape of the message, which transformers' chat templates and the checkpoint's accept.
`parser` finds the calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sglang_longcat.tool_parser import values
from sglang_longcat.tool_parser.events import Arguments, Call, Text
from sglang_longcat.tool_parser.parser import CallParser
from sglang_longcat.tool_parser.scan import END_THINK, THINK

EOS = "</longcat_s>"


def parse_model_response(
    text: str, tools: Iterable[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The assistant message that the model wrote as `text` (special tokens kept).

    Returns role and content, and if there are any, reasoning_content and tool_calls. Each call is
    {"type": "function", "function": {"name", "arguments"}}. The arguments are a dict, or the text
    so far if the answer was cut off inside them. `tools` are OpenAI tool definitions or their
    functions. None accepts a call of any name and reads every value that is JSON as JSON.
    """
    reasoning, text = _split_reasoning(text.removesuffix(EOS))
    parser = CallParser(dict(_schema(tool) for tool in tools or ()), any_name=tools is None)
    content, calls = "", list[tuple[str, list[str]]]()
    for event in parser.feed(text) + parser.finish():
        match event:
            case Text(text=piece):
                content += piece
            case Call(name=name):
                calls.append((name, []))
            case Arguments(index=index, json=piece):
                calls[index][1].append(piece)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [_tool_call(name, "".join(pieces)) for name, pieces in calls]
    return message


def _tool_call(name: str, arguments: str) -> dict[str, Any]:
    try:
        decoded = values.load(arguments)
    except ValueError:
        decoded = arguments
    return {"type": "function", "function": {"name": name, "arguments": decoded}}


def _schema(tool: Mapping[str, Any]) -> tuple[str, values.Schema]:
    function = tool.get("function", tool)
    return function["name"], function.get("parameters") or {}


def _split_reasoning(text: str) -> tuple[str, str]:
    if not text.lstrip().startswith(THINK):
        return "", text
    reasoning, _, answer = text.lstrip().removeprefix(THINK).partition(END_THINK)
    return reasoning, answer

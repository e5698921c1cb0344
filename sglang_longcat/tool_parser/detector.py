"""`--tool-call-parser longcat`: SGLang's interface to `parser` and `structure`.

Owns: the translation of SGLang's tools for the parser, and of the parser's events for SGLang.
SGLang makes one detector for each choice (`n`) of an answer.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.entrypoints.openai.protocol import Tool, ToolChoice
from sglang.srt.environ import envs
from sglang.srt.function_call.base_format_detector import BaseFormatDetector
from sglang.srt.function_call.core_types import StreamingParseResult, StructureInfo, ToolCallItem

from sglang_longcat.tool_parser import scan, structure, values
from sglang_longcat.tool_parser.events import Arguments, Call, Event, Text
from sglang_longcat.tool_parser.parser import CallParser
from sglang_longcat.tool_parser.scan import CALL, END_CALL


class LongcatDetector(BaseFormatDetector):
    """A call of an undeclared tool stays text, unless SGLANG_FORWARD_UNKNOWN_TOOLS is set."""

    def __init__(self) -> None:
        super().__init__()
        self.bot_token, self.eot_token = CALL, END_CALL
        self._parser: CallParser | None = None
        self.refused: ValueError | None = None  # why the tools have no structural tag

    def has_tool_call(self, text: str) -> bool:
        """Also for a tag that was cut off, because SGLang asks before it parses."""
        return CALL in text or scan.partial_tag(text, CALL) >= len(scan.MARK)

    def detect_and_parse(self, text: str, tools: list[Tool]) -> StreamingParseResult:
        parser = _parser(tools)
        result = _result(parser.feed(text) + parser.finish())
        calls: list[ToolCallItem] = []
        for item in result.calls:
            if item.name is not None:
                calls.append(item)
            else:
                calls[-1].parameters += item.parameters
        positions = self._get_tool_indices(tools)
        for call in calls:
            call.tool_index = positions.get(call.name, -1)
        return StreamingParseResult(normal_text=result.normal_text, calls=calls)

    def parse_streaming_increment(self, new_text: str, tools: list[Tool]) -> StreamingParseResult:
        if self._parser is None:
            self._parser = _parser(tools)
        return self._record(_result(self._parser.feed(new_text)))

    def finish(self, tools: list[Tool]) -> StreamingParseResult:
        if self._parser is None:
            return StreamingParseResult()
        parser, self._parser = self._parser, None
        return self._record(_result(parser.finish()))

    def _record(self, result: StreamingParseResult) -> StreamingParseResult:
        """Keep what SGLang compares at the end of a stream: arguments that were sent and arguments
        that were parsed. They are equal, because every piece is sent at once."""
        for item in result.calls:
            if item.name is not None:
                self.streamed_args_for_tool.append("")
                self.prev_tool_call_arr.append({"name": item.name, "arguments": ""})
            self.streamed_args_for_tool[item.tool_index] += item.parameters
            sent = self.streamed_args_for_tool[item.tool_index]
            self.prev_tool_call_arr[item.tool_index]["arguments"] = sent
        return result

    def structure_info(self) -> Any:
        """The call as one JSON object, for callers that use SGLang's older structural tags."""
        return lambda name: StructureInfo(
            begin=f'{CALL}{{"name": {values.quote(name)}, "arguments": ',
            end=f"}}{END_CALL}",
            trigger=CALL,
        )

    def get_structural_tag(
        self,
        tools: list[Tool] | None = None,
        tool_choice: Any = "auto",
        thinking_mode: bool = False,
        parallel_tool_calls: bool = True,
    ) -> Any:
        """`thinking_mode` changes nothing, because the model's template opens no reasoning.
        `refusal_hook` hands a refusal to the client, because SGLang only logs what this raises."""
        if isinstance(tool_choice, ToolChoice):
            named = tool_choice.function.name
            tools = [tool for tool in tools or [] if tool.function.name == named]
        try:
            structure.check_names([tool.function.name for tool in tools or []])
            return structure.structural_tag(
                _schemas(tools or []),
                at_least_one=tool_choice != "auto",
                parallel=parallel_tool_calls,
                lenient=_lenient(tools or []) if tool_choice == "auto" else (),
            )
        except ValueError as error:
            self.refused = error
            raise


def _parser(tools: list[Tool]) -> CallParser:
    return CallParser(_schemas(tools), any_name=bool(envs.SGLANG_FORWARD_UNKNOWN_TOOLS.get()))


def _schemas(tools: list[Tool]) -> dict[str, values.Schema]:
    return {tool.function.name: _parameters(tool) for tool in tools}


def _parameters(tool: Tool) -> Any:
    given = tool.function.parameters
    return {} if given is None or given is True else given


def _lenient(tools: list[Tool]) -> list[str]:
    """Beside a strict tool, the others are called freely: only `strict` promises the schema."""
    return [tool.function.name for tool in tools if not tool.function.strict]


def _result(events: list[Event]) -> StreamingParseResult:
    """One item for the name of each call and one for each piece of arguments. The indices number
    the calls of an answer."""
    text, items = "", []
    for event in events:
        match event:
            case Text(text=piece):
                text += piece
            case Call(index=index, name=name):
                items.append(ToolCallItem(tool_index=index, name=name, parameters=""))
            case Arguments(index=index, json=piece):
                items.append(ToolCallItem(tool_index=index, parameters=piece))
    return StreamingParseResult(normal_text=text, calls=items)

"""LongCat's tool-call grammar as a state machine over text that arrives in pieces.

Owns: what is text, what is a call, and when either may be shown. Four forms of a call are read:

    <longcat_tool_call>name <longcat_arg_key>k</longcat_arg_key>
        <longcat_arg_value>v</longcat_arg_value> ... </longcat_tool_call>
    <longcat_tool_call>{"name": "name", "arguments": {...}}</longcat_tool_call>
    <longcat_tool_call>name <longcat_arg_key>{...}      name({...})      name {...}

A call is announced once it cannot be anything else, with its first value; until then, whatever does
not fit the grammar is text. Arguments become complete JSON only if the model completed them: a call
that was cut off, or went wrong after its announcement, stays open, so that nobody runs half a
command. The same text gives the same calls however it is split. Types of values: `values`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sglang_longcat.tool_parser import scan, values
from sglang_longcat.tool_parser.events import Arguments, Call, Event, Text
from sglang_longcat.tool_parser.head import Follows, HeadReader
from sglang_longcat.tool_parser.pairs import PairWriter
from sglang_longcat.tool_parser.scan import CALL, END_CALL, END_KEY, END_VALUE, KEY

_CLOSING = re.compile(rf"\s*(?:[)}}]\s*)*(?:{END_KEY}\s*)?")
_VALUE_TAG = re.compile(f"{END_VALUE}|{END_CALL}")
_AFTER_END_CALL = re.compile(f"{END_VALUE}|{CALL}")


class CallParser:
    """`tools` maps names to their parameters' JSON schema; `any_name` accepts others too."""

    def __init__(self, tools: Mapping[str, values.Schema], *, any_name: bool = False) -> None:
        self._tools, self._any_name = tools, any_name
        self._buffer, self._final = "", False
        self._events: list[Event] = []
        self._state: Callable[[], bool] = self._text  # each returns False to wait for more text
        self._index = -1
        self._head_reader = HeadReader(tools, any_name=any_name)
        self._pairs = PairWriter({})
        self._object = scan.ObjectScanner(0)

    def feed(self, text: str) -> list[Event]:
        """What is certain after `text`. Never raises."""
        self._buffer += text
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """What the end of the answer decides; the parser is used up."""
        self._final = True
        return self.feed("")

    # Text, and the head of a call

    def _text(self) -> bool:
        start = self._buffer.find(CALL)
        if start < 0:
            keep = 0 if self._final else scan.held(self._buffer, CALL)
            self._show(self._take(len(self._buffer) - keep))
            return False
        self._show(self._take(start))
        self._take(len(CALL))
        self._head_reader = HeadReader(self._tools, any_name=self._any_name)
        self._state = self._head
        return True

    def _head(self) -> bool:
        """Nothing is consumed before the call is certain."""
        head = self._head_reader.read(self._buffer)
        if isinstance(head, bool):
            return False if head and not self._final else self._as_text()
        self._take(head.size)
        self._index += 1
        self._events.append(Call(self._index, head.name))
        self._argue(head.json)
        self._state = {
            Follows.NOTHING: self._after,
            Follows.VALUE: self._in_value,
            Follows.OBJECT: self._in_object,
            Follows.END: self._closing,
        }[head.follows]
        if head.follows is Follows.VALUE:
            self._pairs = PairWriter(self._tools.get(head.name, {}))
            self._argue(self._pairs.open(head.key))
        self._object = scan.ObjectScanner(0)
        return True

    # Arguments

    def _in_object(self) -> bool:
        self._object.scan(self._buffer)
        self._argue(self._take(self._object.position))
        self._object.position = 0
        if self._object.done or self._object.broken:
            self._state = self._closing
            return True
        return False

    def _in_value(self) -> bool:
        """A closing tag ends the value only where the grammar goes on behind it."""
        tag = _VALUE_TAG.search(self._buffer)
        if tag is None:
            keep = max(scan.held(self._buffer, end) for end in (END_VALUE, END_CALL))
            self._argue(self._pairs.grow(self._take(len(self._buffer) - keep)))
            return False
        self._argue(self._pairs.grow(self._take(tag.start())))
        ends = self._pair_ends if tag[0] == END_VALUE else self._call_ends
        verdict = ends(self._buffer[len(tag[0]) :])
        if verdict is None:
            return False
        if not verdict:
            self._argue(self._pairs.grow(self._take(len(tag[0]))))
            return True
        if tag[0] == END_VALUE:
            self._take(len(END_VALUE))
        self._argue(self._pairs.close())
        self._state = self._next_pair
        return True

    def _pair_ends(self, rest: str) -> bool | None:
        rest = rest.lstrip()
        if rest.startswith((KEY, END_CALL)):
            return True
        if scan.could_become(rest, KEY, END_CALL):
            return True if self._final else None
        return False

    def _call_ends(self, rest: str) -> bool | None:
        """END_CALL in a value: part of it if the value is closed later, before any other call."""
        following = _AFTER_END_CALL.search(rest)
        if following is None:
            return True if self._final else None
        return following[0] == CALL

    def _next_pair(self) -> bool:
        rest = self._buffer.lstrip()
        if rest.startswith(END_CALL):
            self._take(len(self._buffer) - len(rest) + len(END_CALL))
            self._argue("}")
            self._state = self._after
            return True
        if not rest.startswith(KEY):  # only at the end of the answer: the model closed the value
            self._buffer = ""
            self._argue("}")
            return False
        found = scan.read_key(rest[len(KEY) :])
        if isinstance(found, bool):
            if found and not self._final:
                return False
            self._buffer = "" if found else rest
            self._state = self._text
            return True
        self._take(len(self._buffer) - len(rest) + len(KEY) + found[1])
        self._argue(self._pairs.open(found[0]))
        self._state = self._in_value
        return True

    # After the arguments

    def _closing(self) -> bool:
        """What may follow an object: brackets around it and closing tags, any of them missing."""
        found = _CLOSING.match(self._buffer)
        assert found is not None
        rest = self._buffer[found.end() :]
        if rest.startswith(END_CALL):
            self._take(found.end() + len(END_CALL))
            self._state = self._after
            return True
        if scan.could_become(rest, END_CALL, END_KEY):
            self._buffer = "" if self._final else self._buffer
            return False
        self._take(found.end())
        self._state = self._text
        return True

    def _after(self) -> bool:
        """The line break that the chat template writes after each call belongs to it."""
        if not self._buffer:
            return False
        if self._buffer.startswith("\n"):
            self._take(1)
        self._state = self._text
        return True

    # Small change

    def _take(self, size: int) -> str:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _show(self, text: str) -> None:
        if text:
            self._events.append(Text(text))

    def _argue(self, json: str) -> None:
        if json:
            self._events.append(Arguments(self._index, json))

    def _as_text(self) -> bool:
        """Not a call after all; what follows its opening tag is read again."""
        self._show(CALL)
        self._state = self._text
        return True

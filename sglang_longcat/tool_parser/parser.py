"""LongCat's tool-call grammar as a state machine over text that arrives in pieces.

Owns: what is text, what is a call, and when either may be emitted. A call has one of four forms:

    <longcat_tool_call>name <longcat_arg_key>k</longcat_arg_key>
        <longcat_arg_value>v</longcat_arg_value> ... </longcat_tool_call>
    <longcat_tool_call>{"name": "name", "arguments": {...}}</longcat_tool_call>
    <longcat_tool_call>name <longcat_arg_key>{...}      name({...})      name {...}

The parser emits a call when it cannot be anything else, together with its first value. Until then,
whatever does not fit the grammar is text. The emitted arguments become complete JSON only if the
model completed them: a call that was cut off, or that went wrong after it was emitted, stays
incomplete, so that nobody runs half a command. A call that was cut off before it was emitted is
dropped, and so is an opening tag that was cut off behind `<longcat_`. The same text gives the same
calls however it is split. `head` reads the start of a call, `pairs` writes arguments, and `values`
knows their types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum, auto

from sglang_longcat.tool_parser import scan, values
from sglang_longcat.tool_parser.events import Arguments, Call, Event, Text
from sglang_longcat.tool_parser.head import Follows, HeadReader
from sglang_longcat.tool_parser.pairs import PairWriter
from sglang_longcat.tool_parser.scan import CALL, END_CALL, END_KEY, END_VALUE, KEY, NotRead

_CLOSING = re.compile(rf"\s*(?:[)}}]\s*)*(?:{END_KEY}\s*)?")
_VALUE_TAG = re.compile(f"{END_VALUE}|{END_CALL}")
_AFTER_END_CALL = re.compile(f"{END_VALUE}|{CALL}")


class _ClosingTag(Enum):
    """What a closing tag that stands in a value means."""

    ENDS_VALUE = auto()
    PART_OF_VALUE = auto()
    UNDECIDED = auto()  # the text behind it decides, and has not arrived


class CallParser:
    """`tools` maps names to their parameters' JSON schema; `any_name` accepts other names too."""

    def __init__(self, tools: Mapping[str, values.Schema], *, any_name: bool = False) -> None:
        self._tools, self._any_name = tools, any_name
        self._buffer = ""  # text that is not consumed yet
        self._final = False  # True: no more text will come
        self._events: list[Event] = []
        # A state consumes text and emits events. It returns False if it waits for more text.
        self._state: Callable[[], bool] = self._text
        self._index = -1
        self._head_reader = HeadReader(tools, any_name=any_name)
        self._pairs = PairWriter({})
        self._object = scan.ObjectScanner(0)

    def feed(self, text: str) -> list[Event]:
        """Append `text` and return the events that are now certain. Never raises."""
        self._buffer += text
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """Return the events that the end of the answer decides. Nothing can be fed afterwards."""
        self._final = True
        return self.feed("")

    # Text, and the head of a call

    def _text(self) -> bool:
        start = self._buffer.find(CALL)
        if start < 0:
            keep = scan.partial_tag(self._buffer, CALL)
            if self._final and keep < len(scan.MARK):
                keep = 0
            self._emit_text(self._take(len(self._buffer) - keep))
            self._buffer = "" if self._final else self._buffer
            return False
        self._emit_text(self._take(start))
        self._take(len(CALL))
        self._head_reader = HeadReader(self._tools, any_name=self._any_name)
        self._state = self._head
        return True

    def _head(self) -> bool:
        """Consume the head of a call once it is complete, nothing before."""
        head = self._head_reader.read(self._buffer)
        if isinstance(head, NotRead):
            if head is NotRead.MALFORMED:
                return self._as_text()
            self._buffer = "" if self._final else self._buffer  # cut off: no part of it is text
            return False
        self._take(head.size)
        self._index += 1
        self._events.append(Call(self._index, head.name))
        self._emit_arguments(head.json)
        self._state = {
            Follows.NOTHING: self._after,
            Follows.VALUE: self._in_value,
            Follows.OBJECT: self._in_object,
            Follows.END: self._closing,
        }[head.follows]
        if head.follows is Follows.VALUE:
            self._pairs = PairWriter(self._tools.get(head.name, {}))
            self._emit_arguments(self._pairs.open(head.key))
        self._object = scan.ObjectScanner(0)
        return True

    # Arguments

    def _in_object(self) -> bool:
        self._object.scan(self._buffer)
        self._emit_arguments(self._take(self._object.position))
        self._object.position = 0
        if self._object.done or self._object.broken:
            self._state = self._closing
            return True
        return False

    def _in_value(self) -> bool:
        """A closing tag ends the value only if the text behind it continues the grammar."""
        tag = _VALUE_TAG.search(self._buffer)
        if tag is None:
            keep = max(scan.partial_tag(self._buffer, end) for end in (END_VALUE, END_CALL))
            self._emit_arguments(self._pairs.grow(self._take(len(self._buffer) - keep)))
            return False
        self._emit_arguments(self._pairs.grow(self._take(tag.start())))
        match self._closing_tag(tag[0], self._buffer[len(tag[0]) :]):
            case _ClosingTag.UNDECIDED:
                return False
            case _ClosingTag.PART_OF_VALUE:
                self._emit_arguments(self._pairs.grow(self._take(len(tag[0]))))
            case _ClosingTag.ENDS_VALUE:
                if tag[0] == END_VALUE:  # `_next_pair` reads END_CALL
                    self._take(len(END_VALUE))
                self._emit_arguments(self._pairs.close())
                self._state = self._next_pair
        return True

    def _closing_tag(self, tag: str, rest: str) -> _ClosingTag:
        """What `tag`, END_VALUE or END_CALL, means in a value if `rest` follows it."""
        meaning = _end_value(rest) if tag == END_VALUE else _end_call(rest)
        if meaning is _ClosingTag.UNDECIDED and self._final:
            return _ClosingTag.ENDS_VALUE
        return meaning

    def _next_pair(self) -> bool:
        rest = self._buffer.lstrip()
        if rest.startswith(END_CALL):
            self._take(len(self._buffer) - len(rest) + len(END_CALL))
            self._emit_arguments("}")
            self._state = self._after
            return True
        if not rest.startswith(KEY):  # the answer ends here, after a value that the model closed
            self._buffer = ""
            self._emit_arguments("}")
            return False
        key = scan.read_key(rest[len(KEY) :])
        if isinstance(key, NotRead):
            if key is NotRead.INCOMPLETE and not self._final:
                return False
            # The call stays open. A half-written key is dropped, a malformed one becomes text.
            self._buffer = "" if key is NotRead.INCOMPLETE else rest
            self._state = self._text
            return True
        self._take(len(self._buffer) - len(rest) + len(KEY) + key.size)
        self._emit_arguments(self._pairs.open(key.name))
        self._state = self._in_value
        return True

    # After the arguments

    def _closing(self) -> bool:
        """Skip what may follow an object: brackets and closing tags, any of them missing."""
        match = _CLOSING.match(self._buffer)
        assert match is not None  # every part of the pattern may be empty
        rest = self._buffer[match.end() :]
        if rest.startswith(END_CALL):
            self._take(match.end() + len(END_CALL))
            self._state = self._after
            return True
        if scan.could_become(rest, END_CALL, END_KEY):
            self._buffer = "" if self._final else self._buffer
            return False
        self._take(match.end())
        self._state = self._text
        return True

    def _after(self) -> bool:
        """Skip the line break that the chat template writes after each call."""
        if not self._buffer:
            return False
        if self._buffer.startswith("\n"):
            self._take(1)
        self._state = self._text
        return True

    # Consuming text and emitting events

    def _take(self, size: int) -> str:
        """Remove the first `size` characters of the buffer and return them."""
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _emit_text(self, text: str) -> None:
        if text:
            self._events.append(Text(text))

    def _emit_arguments(self, json: str) -> None:
        if json:
            self._events.append(Arguments(self._index, json))

    def _as_text(self) -> bool:
        """This was no call: emit its opening tag as text and read what follows the tag again."""
        self._emit_text(CALL)
        self._state = self._text
        return True


def _end_value(rest: str) -> _ClosingTag:
    """END_VALUE ends the value if the next pair or the end of the call follows it."""
    rest = rest.lstrip()
    if rest.startswith((KEY, END_CALL)):
        return _ClosingTag.ENDS_VALUE
    if scan.could_become(rest, KEY, END_CALL):
        return _ClosingTag.UNDECIDED
    return _ClosingTag.PART_OF_VALUE


def _end_call(rest: str) -> _ClosingTag:
    """END_CALL is part of the value if END_VALUE follows it before any other call."""
    following = _AFTER_END_CALL.search(rest)
    if following is None:
        return _ClosingTag.UNDECIDED
    return _ClosingTag.ENDS_VALUE if following[0] == CALL else _ClosingTag.PART_OF_VALUE

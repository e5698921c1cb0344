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
from dataclasses import dataclass

from sglang_longcat.tool_parser import scan, values
from sglang_longcat.tool_parser.scan import CALL, END_CALL, END_KEY, END_VALUE, KEY

_NAME = re.compile(r"\s*([^\s<>(){}]*)\s*")
_BODY = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{\s*["}])'
)
_OBJECT = re.compile(r"\(?\s*(?=\{)")
_CLOSING = re.compile(rf"\s*(?:[)}}]\s*)*(?:{END_KEY}\s*)?")
_VALUE_TAG = re.compile(f"{END_VALUE}|{END_CALL}")
_AFTER_END_CALL = re.compile(f"{END_VALUE}|{CALL}")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Call:
    """The call number `index` calls the tool `name`."""

    index: int
    name: str


@dataclass(frozen=True)
class Arguments:
    """The next piece of the JSON object of call number `index`."""

    index: int
    json: str


Event = Text | Call | Arguments


class CallParser:
    """`tools` maps names to their parameters' JSON schema; `any_name` accepts others too."""

    def __init__(self, tools: Mapping[str, values.Schema], *, any_name: bool = False) -> None:
        self._tools, self._any_name = tools, any_name
        self._buffer, self._final = "", False
        self._events: list[Event] = []
        self._state: Callable[[], bool] = self._text  # each returns False to wait for more text
        self._index = -1
        self._schema: values.Schema = {}
        self._scanner: scan.ObjectScanner | None = None
        self._keys: set[str] = set()
        self._types: frozenset[str] | None = None
        self._value: list[str] | None = None  # pieces of a value that is not known to be a string
        self._repeated = False

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
        self._scanner, self._keys = None, set()
        self._state = self._head
        return True

    def _head(self) -> bool:
        """Nothing is consumed before the call is certain."""
        found = _NAME.match(self._buffer)
        assert found is not None  # every part may be empty
        rest = self._buffer[found.end() :]
        if not rest:
            return self._wait_or_text()
        if not found[1]:
            return self._body() if rest.startswith("{") else self._as_text()
        name = self._declared(found[1])
        if name is None:
            return self._as_text()
        if rest.startswith(END_CALL):
            return self._announce(name, found.end() + len(END_CALL), "{}", self._after)
        if rest.startswith(KEY):
            return self._first_key(name, found.end() + len(KEY))
        if _OBJECT.match(rest):
            return self._object(name, found.end())
        unsure = rest.strip() == "(" or scan.could_become(rest, KEY, END_CALL)
        return self._wait_or_text() if unsure else self._as_text()

    def _first_key(self, name: str, start: int) -> bool:
        rest = self._buffer[start:]
        if rest.lstrip().startswith("{"):
            return self._object(name, start)
        found = scan.read_key(rest)
        if isinstance(found, bool):
            return self._wait_or_text() if found else self._as_text()
        self._announce(name, start + found[1], "{", self._in_value)
        self._open_value(found[0])
        return True

    def _object(self, name: str, start: int) -> bool:
        """All arguments as one object, whose keys may lack their quotes."""
        start = self._buffer.index("{", start)
        first = self._buffer[start + 1 :].lstrip()[:1]
        if first in ('"', "}"):
            self._announce(name, start, "", self._in_object)
            self._scanner = scan.ObjectScanner(0)
            return True
        whole = self._whole_object(start)
        if isinstance(whole, bool):
            return self._wait_or_text() if whole else self._as_text()
        arguments = values.quote_keys(whole)
        if values.json_type(arguments) != "object":
            return self._as_text()
        return self._announce(name, start + len(whole), arguments, self._closing)

    def _body(self) -> bool:
        """`{"name": ..., "arguments": {...}}`; in any other order it is held until its end."""
        found = _BODY.match(self._buffer)
        if found:
            name = self._declared(str(values.load(found[1]))) if _valid(found[1]) else None
            if name is None:
                return self._as_text()
            self._announce(name, found.end(), "", self._in_object)
            self._scanner = scan.ObjectScanner(0)
            return True
        start = self._buffer.index("{")
        whole = self._whole_object(start)
        if isinstance(whole, bool):
            return self._wait_or_text() if whole else self._as_text()
        call = _read_body(whole)
        name = self._declared(call[0]) if call else None
        if call is None or name is None:
            return self._as_text()
        return self._announce(name, start + len(whole), call[1], self._closing)

    def _whole_object(self, start: int) -> str | bool:
        """The object at `start`. True: needs more text. False: it never ends."""
        if self._scanner is None:
            self._scanner = scan.ObjectScanner(start)
        self._scanner.scan(self._buffer)
        if self._scanner.done:
            return self._buffer[start : self._scanner.position]
        return not self._scanner.broken

    # Arguments

    def _in_object(self) -> bool:
        assert self._scanner is not None
        self._scanner.scan(self._buffer)
        self._argue(self._take(self._scanner.position))
        self._scanner.position = 0
        if self._scanner.done or self._scanner.broken:
            self._state = self._closing
            return True
        return False

    def _open_value(self, key: str) -> None:
        self._repeated = key in self._keys  # the first one stays: a value may contain a forged pair
        self._types = values.property_types(self._schema, key)
        streamed = self._types == values.STRING and not self._repeated
        self._value = None if streamed else []
        if not self._repeated:
            separator = ", " if self._keys else ""
            self._argue(f"{separator}{values.quote(key)}: " + ('"' if streamed else ""))
        self._keys.add(key)

    def _in_value(self) -> bool:
        """A closing tag ends the value only where the grammar goes on behind it."""
        tag = _VALUE_TAG.search(self._buffer)
        if tag is None:
            keep = max(scan.held(self._buffer, end) for end in (END_VALUE, END_CALL))
            self._grow(self._take(len(self._buffer) - keep))
            return False
        self._grow(self._take(tag.start()))
        ends = self._pair_ends if tag[0] == END_VALUE else self._call_ends
        verdict = ends(self._buffer[len(tag[0]) :])
        if verdict is None:
            return False
        if not verdict:
            self._grow(self._take(len(tag[0])))
            return True
        if tag[0] == END_VALUE:
            self._take(len(END_VALUE))
        self._close_value()
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

    def _grow(self, text: str) -> None:
        if self._value is None:
            self._argue(values.quote(text)[1:-1])
        else:
            self._value.append(text)

    def _close_value(self) -> None:
        if self._value is None:
            self._argue('"')
        elif not self._repeated:
            self._argue(values.to_json("".join(self._value), self._types))

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
        self._open_value(found[0])
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

    def _announce(self, name: str, size: int, json: str, state: Callable[[], bool]) -> bool:
        self._take(size)
        self._index += 1
        self._schema = self._tools.get(name, {})
        self._events.append(Call(self._index, name))
        self._argue(json)
        self._state = state
        return True

    def _declared(self, name: str) -> str | None:
        bare = name.removeprefix("functions.")
        known = next((each for each in (name, bare) if each in self._tools), None)
        return (bare or None) if known is None and self._any_name else known

    def _wait_or_text(self) -> bool:
        return self._as_text() if self._final else False

    def _as_text(self) -> bool:
        """Not a call after all; what follows its opening tag is read again."""
        self._show(CALL)
        self._state = self._text
        return True


def _valid(text: str) -> bool:
    return values.json_type(text) is not None


def _read_body(text: str) -> tuple[str, str] | None:
    """Name and arguments' JSON of a call written as one object; arguments may be a string of it."""
    try:
        body = values.load(text)
    except ValueError:
        return None
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str):
        return None
    arguments = body.get("arguments", body.get("parameters", {}))
    if isinstance(arguments, str):
        return (name, arguments.strip()) if values.json_type(arguments) == "object" else None
    return (name, values.dump(arguments)) if isinstance(arguments, dict) else None

"""The head of a call: the text after the opening tag, up to where the tool and the form are known.

Owns: which of the four forms (listed in `parser`) a call has, when a text is no call, and which
names of tools count. This file only reads; `parser` consumes a head once it is complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from sglang_longcat.tool_parser import scan, values
from sglang_longcat.tool_parser.scan import END_CALL, KEY, NotRead

NAME = r"[^\s<>(){}]+"
_NAME = re.compile(rf"\s*((?:{NAME})?)\s*")
_BODY = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{\s*["}])'
)
_OBJECT = re.compile(r"\(?\s*(?=\{)")


class Follows(Enum):
    """What comes after the head."""

    NOTHING = auto()  # the call is complete
    VALUE = auto()  # the value of `Head.key`, then more pairs
    OBJECT = auto()  # all arguments as one JSON object
    END = auto()  # brackets and closing tags


@dataclass(frozen=True)
class Head:
    """A call of the tool `name`, whose head is `size` characters long."""

    name: str
    size: int
    follows: Follows
    json: str = ""  # the part of the arguments' JSON that the head contains
    key: str = ""


class HeadReader:
    """Reads the head of one call from a text that grows. `tools` and `any_name`: see CallParser."""

    def __init__(self, tools: Mapping[str, values.Schema], *, any_name: bool) -> None:
        self._tools, self._any_name = tools, any_name
        self._scanner: scan.ObjectScanner | None = None

    def read(self, text: str) -> Head | NotRead:
        """The head at the start of `text`; MALFORMED if this is no call."""
        match = _NAME.match(text)
        assert match is not None  # every part of the pattern may be empty
        rest = text[match.end() :]
        if not rest:
            return NotRead.INCOMPLETE
        if not match[1]:
            return self._body(text) if rest.startswith("{") else NotRead.MALFORMED
        name = self._declared(match[1])
        if name is None:
            return NotRead.MALFORMED
        if rest.startswith(END_CALL):
            return Head(name, match.end() + len(END_CALL), Follows.NOTHING, "{}")
        if rest.startswith(KEY):
            return self._first_key(name, text, match.end() + len(KEY))
        if _OBJECT.match(rest):
            return self._object(name, text, match.end())
        if rest.strip() == "(" or scan.could_become(rest, KEY, END_CALL):
            return NotRead.INCOMPLETE
        return NotRead.MALFORMED

    def _first_key(self, name: str, text: str, start: int) -> Head | NotRead:
        rest = text[start:]
        if rest.lstrip().startswith("{"):
            return self._object(name, text, start)
        key = scan.read_key(rest)
        if isinstance(key, NotRead):
            return key
        return Head(name, start + key.size, Follows.VALUE, "{", key=key.name)

    def _object(self, name: str, text: str, start: int) -> Head | NotRead:
        """All arguments as one object. Where its keys lack quotes, read it whole to add them."""
        start = text.index("{", start)
        if text[start + 1 :].lstrip()[:1] in ('"', "}"):
            return Head(name, start, Follows.OBJECT)
        whole = self._whole_object(text, start)
        if isinstance(whole, NotRead):
            return whole
        arguments = values.quote_keys(whole)
        if values.json_type(arguments) != "object":
            return NotRead.MALFORMED
        return Head(name, start + len(whole), Follows.END, arguments)

    def _body(self, text: str) -> Head | NotRead:
        """`{"name": ..., "arguments": {...}}`. In any other order, the whole body is read first."""
        match = _BODY.match(text)
        if match:
            name = _as_string(match[1])
            known = None if name is None else self._declared(name)
            if known is None:
                return NotRead.MALFORMED
            return Head(known, match.end(), Follows.OBJECT)
        start = text.index("{")
        whole = self._whole_object(text, start)
        if isinstance(whole, NotRead):
            return whole
        call = _read_body(whole)
        known = self._declared(call[0]) if call else None
        if call is None or known is None:
            return NotRead.MALFORMED
        return Head(known, start + len(whole), Follows.END, call[1])

    def _whole_object(self, text: str, start: int) -> str | NotRead:
        """The object at `start`; MALFORMED if a `<` outside a string comes before its end."""
        if self._scanner is None:
            self._scanner = scan.ObjectScanner(start)
        self._scanner.scan(text)
        if self._scanner.done:
            return text[start : self._scanner.position]
        return NotRead.MALFORMED if self._scanner.broken else NotRead.INCOMPLETE

    def _declared(self, name: str) -> str | None:
        """The tool that `name` means, its prefix "functions." or not; None if there is none."""
        bare = name.removeprefix("functions.")
        known = next((each for each in (name, bare) if each in self._tools), None)
        return (bare or None) if known is None and self._any_name else known


def _as_string(json: str) -> str | None:
    return str(values.load(json)) if values.json_type(json) == "string" else None


def _read_body(text: str) -> tuple[str, str] | None:
    """Name and arguments' JSON of a call that is one object. The arguments may be an object, or a
    string with the JSON of one."""
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

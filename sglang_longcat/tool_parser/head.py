"""The head of a call: what follows the opening tag, until it is certain which tool is called how.

Owns: telling the four forms that `parser` lists from each other and from text, and which names
count. Reads only; nothing of a call is consumed before its head is complete.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from sglang_longcat.tool_parser import scan, values
from sglang_longcat.tool_parser.scan import END_CALL, KEY

_NAME = re.compile(r"\s*([^\s<>(){}]*)\s*")
_BODY = re.compile(
    r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{\s*["}])'
)
_OBJECT = re.compile(r"\(?\s*(?=\{)")


class Follows(Enum):
    """What comes after the head."""

    NOTHING = auto()  # the call is complete
    VALUE = auto()  # of `Head.key`, and more pairs
    OBJECT = auto()  # all arguments as JSON
    END = auto()  # brackets and closing tags


@dataclass(frozen=True)
class Head:
    """The tool `name`, and the JSON of arguments that the head's `size` characters held."""

    name: str
    size: int
    follows: Follows
    json: str = ""
    key: str = ""


class HeadReader:
    """Reads the head of one call from a text that grows. `tools` and `any_name`: see CallParser."""

    def __init__(self, tools: Mapping[str, values.Schema], *, any_name: bool) -> None:
        self._tools, self._any_name = tools, any_name
        self._scanner: scan.ObjectScanner | None = None

    def read(self, text: str) -> Head | bool:
        """The head of `text`. True: needs more text. False: this is no call."""
        found = _NAME.match(text)
        assert found is not None  # every part may be empty
        rest = text[found.end() :]
        if not rest:
            return True
        if not found[1]:
            return self._body(text) if rest.startswith("{") else False
        name = self._declared(found[1])
        if name is None:
            return False
        if rest.startswith(END_CALL):
            return Head(name, found.end() + len(END_CALL), Follows.NOTHING, "{}")
        if rest.startswith(KEY):
            return self._first_key(name, text, found.end() + len(KEY))
        if _OBJECT.match(rest):
            return self._object(name, text, found.end())
        return rest.strip() == "(" or scan.could_become(rest, KEY, END_CALL)

    def _first_key(self, name: str, text: str, start: int) -> Head | bool:
        rest = text[start:]
        if rest.lstrip().startswith("{"):
            return self._object(name, text, start)
        found = scan.read_key(rest)
        if isinstance(found, bool):
            return found
        return Head(name, start + found[1], Follows.VALUE, "{", key=found[0])

    def _object(self, name: str, text: str, start: int) -> Head | bool:
        """All arguments as one object, whose keys may lack their quotes."""
        start = text.index("{", start)
        if text[start + 1 :].lstrip()[:1] in ('"', "}"):
            return Head(name, start, Follows.OBJECT)
        whole = self._whole_object(text, start)
        if isinstance(whole, bool):
            return whole
        arguments = values.quote_keys(whole)
        if values.json_type(arguments) != "object":
            return False
        return Head(name, start + len(whole), Follows.END, arguments)

    def _body(self, text: str) -> Head | bool:
        """`{"name": ..., "arguments": {...}}`; in any other order it is held until its end."""
        found = _BODY.match(text)
        if found:
            name = _as_string(found[1])
            known = None if name is None else self._declared(name)
            return False if known is None else Head(known, found.end(), Follows.OBJECT)
        start = text.index("{")
        whole = self._whole_object(text, start)
        if isinstance(whole, bool):
            return whole
        call = _read_body(whole)
        known = self._declared(call[0]) if call else None
        if call is None or known is None:
            return False
        return Head(known, start + len(whole), Follows.END, call[1])

    def _whole_object(self, text: str, start: int) -> str | bool:
        """The object at `start`. True: needs more text. False: it never ends."""
        if self._scanner is None:
            self._scanner = scan.ObjectScanner(start)
        self._scanner.scan(text)
        if self._scanner.done:
            return text[start : self._scanner.position]
        return not self._scanner.broken

    def _declared(self, name: str) -> str | None:
        bare = name.removeprefix("functions.")
        known = next((each for each in (name, bare) if each in self._tools), None)
        return (bare or None) if known is None and self._any_name else known


def _as_string(json: str) -> str | None:
    return str(values.load(json)) if values.json_type(json) == "string" else None


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

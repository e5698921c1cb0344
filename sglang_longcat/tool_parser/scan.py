"""Small readers that `head` and `parser` use: tags, keys, and the extent of a JSON object.

Owns: the spelling of the tags. Every reader accepts text that may still grow, and says whether it
needs more of it. `head` and `parser` decide what the tags mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

CALL, END_CALL = "<longcat_tool_call>", "</longcat_tool_call>"
KEY, END_KEY = "<longcat_arg_key>", "</longcat_arg_key>"
VALUE, END_VALUE = "<longcat_arg_value>", "</longcat_arg_value>"
THINK, END_THINK = "<longcat_think>", "</longcat_think>"
MARK = "<longcat_"  # only a tag begins like this
_TAG = re.compile("|".join((CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)))


class NotRead(Enum):
    """Why a reader returns no result."""

    INCOMPLETE = auto()  # more text can still complete it
    MALFORMED = auto()  # no further text can


@dataclass(frozen=True)
class Key:
    """The key of an argument."""

    name: str
    size: int  # characters from the end of KEY to the start of the value


def partial_tag(text: str, tag: str) -> int:
    """Length of the end of `text` that could be the start of `tag`."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0


def could_become(text: str, *tags: str) -> bool:
    """True if more text could make `text` start with one of `tags`."""
    return any(len(text) < len(tag) and tag.startswith(text) for tag in tags)


def read_key(text: str) -> Key | NotRead:
    """Read the key from `text`, which begins after KEY."""
    tag = _TAG.search(text)
    if tag is None:
        return NotRead.INCOMPLETE
    name, after = text[: tag.start()].strip(), text[tag.end() :]
    if not name or tag[0] not in (END_KEY, VALUE):
        return NotRead.MALFORMED
    if tag[0] == END_KEY:
        after = after.lstrip()
        if not after.startswith(VALUE):
            return NotRead.INCOMPLETE if could_become(after, VALUE) else NotRead.MALFORMED
        after = after.removeprefix(VALUE)
    return Key(name=name, size=len(text) - len(after))


class ObjectScanner:
    """Finds the end of the JSON object that starts at `position` in a growing text."""

    def __init__(self, position: int) -> None:
        self.position, self.broken, self.done = position, False, False
        self._depth, self._quoted, self._escaped = 0, False, False

    def scan(self, text: str) -> None:
        """Advance `position` to the end of `text`, or to the end of the object (`done`), or to a
        `<` outside a string (`broken`)."""
        while self.position < len(text) and not (self.done or self.broken):
            character = text[self.position]
            if self._quoted:
                self._inside_string(character)
            elif character == "<":  # never JSON outside a string: the model left the object open
                self.broken = True
                return
            else:
                self._outside_string(character)
            self.position += 1

    def _inside_string(self, character: str) -> None:
        if self._escaped:
            self._escaped = False
        elif character == "\\":
            self._escaped = True
        elif character == '"':
            self._quoted = False

    def _outside_string(self, character: str) -> None:
        if character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            self.done = self._depth == 0

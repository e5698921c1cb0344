"""Small readers that `parser` is made of: tags, and the extent of a JSON object.

Owns: the spelling of the tags. All of them read text that may still grow.
"""

from __future__ import annotations

import re

CALL, END_CALL = "<longcat_tool_call>", "</longcat_tool_call>"
KEY, END_KEY = "<longcat_arg_key>", "</longcat_arg_key>"
VALUE, END_VALUE = "<longcat_arg_value>", "</longcat_arg_value>"
THINK, END_THINK = "<longcat_think>", "</longcat_think>"
_TAG = re.compile("|".join((CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)))


def held(text: str, tag: str) -> int:
    """Length of the end of `text` that could be the start of `tag`."""
    for size in range(min(len(text), len(tag) - 1), 0, -1):
        if text.endswith(tag[:size]):
            return size
    return 0


def could_become(text: str, *tags: str) -> bool:
    """True if more text could make `text` start with one of `tags`."""
    return any(len(text) < len(tag) and tag.startswith(text) for tag in tags)


def read_key(text: str) -> tuple[str, int] | bool:
    """The key after KEY, and where its value starts. True: needs more text. False: malformed."""
    tag = _TAG.search(text)
    if tag is None:
        return True
    key, after = text[: tag.start()].strip(), text[tag.end() :]
    if not key or tag[0] not in (END_KEY, VALUE):
        return False
    if tag[0] == END_KEY:
        after = after.lstrip()
        if not after.startswith(VALUE):
            return could_become(after, VALUE)
        after = after.removeprefix(VALUE)
    return key, len(text) - len(after)


class ObjectScanner:
    """Finds the end of the JSON object that starts at `position` in a growing text."""

    def __init__(self, position: int) -> None:
        self.position, self.broken, self.done = position, False, False
        self._depth, self._quoted, self._escaped = 0, False, False

    def scan(self, text: str) -> None:
        """Go on to the end of `text`, of the object (`done`), or before a `<` (`broken`)."""
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

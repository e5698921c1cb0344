"""A `pattern` as a regular expression that xgrammar reads as ECMA-262 and Python do.

Owns: what of a pattern can be written. xgrammar ignores lookaheads, misreads named groups and
anchors inside, lets `.` write a line break, and matches whole strings only. Python's own parser
reads the pattern here, and what it found is written again without these differences. The strings of
the result all match the pattern; some matching strings may be left out. Python has no public parser
of regular expressions, so this uses the private one, on which `re` itself rests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from re import _constants as codes  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

from sglang_longcat.tool_parser.schema import characters

_NAMED = re.compile(r"\(\?<(?=[A-Za-z_])")


class Unwritable(ValueError):
    """The pattern demands what no grammar here can."""


def write(pattern: str, least: int = 0, most: int | None = None, *, quoted: bool) -> str:
    """`pattern` for strings of `least` to `most` characters, anchored on both sides. `quoted`: for
    the inside of a JSON string, which escapes some characters. Otherwise for the inside of our
    tags: a pattern that may write "<" is refused, because a grammar cannot exclude a tag from it.
    """
    try:
        tree = parser.parse(_NAMED.sub("(?P<", pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise Unwritable(f"the pattern cannot be read ({error})") from None
    if tree.state.flags & ~re.UNICODE:
        raise Unwritable("flags inside a pattern are not supported")
    for longest in _bounds(most):
        text = _Writer(least, longest, quoted).whole(tree)
        low, high = parser.parse(text).getwidth()
        if low >= least and (most is None or high <= most):
            return f"^{text}$"
    raise Unwritable(f"no length from {least} to {most} characters was found for the pattern")


def _bounds(most: int | None) -> Iterator[int | None]:
    """The longest repetition to try: as it is, then shorter and shorter."""
    yield None
    while most is not None:
        yield most
        most = most * 3 // 4 if most else None


class _Writer:
    """`least`: the length that repetitions of one character make up for; `longest`: of each
    repetition."""

    def __init__(self, least: int, longest: int | None, quoted: bool) -> None:
        self._least, self._longest, self._quoted = least, longest, quoted
        self._starts = self._ends = False  # an anchor was seen on this side

    def whole(self, tree: Any) -> str:
        missing = max(self._least - tree.getwidth()[0], 0)
        body = self._sequence(tree, left=True, right=True, missing=missing)
        before, after = ("" if seen else self._open() for seen in (self._starts, self._ends))
        return f"{before}(?:{body}){after}" if before or after else body

    def _open(self) -> str:
        """What may stand beside a pattern that has no anchor on that side."""
        most = "" if self._longest is None else self._longest
        return f"{self._characters(characters.complement([]))}{{0,{most}}}"

    def _sequence(self, items: Iterable[Any], *, left: bool, right: bool, missing: int = 0) -> str:
        items, written = list(items), []
        for at, (code, value) in enumerate(items):
            first, last = left and at == 0, right and at == len(items) - 1
            if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
                text, missing = self._repeat(value, missing)
                written.append(text)
            else:
                written.append(self._one(code, value, first, last))
        return "".join(written)

    def _one(self, code: Any, value: Any, first: bool, last: bool) -> str:
        if code is codes.AT:
            return self._anchor(value, first, last)
        if code is codes.BRANCH:
            branches = [self._sequence(each, left=first, right=last) for each in value[1]]
            return f"(?:{'|'.join(branches)})"
        if code is codes.SUBPATTERN and not (value[1] or value[2]):
            return f"(?:{self._sequence(value[3], left=first, right=last)})"
        if code is codes.LITERAL:
            return self._characters([(value, value)])
        if code is codes.ANY:
            return self._characters(characters.complement(characters.NOT_DOT))
        if code is codes.NOT_LITERAL:
            return self._characters(characters.complement([(value, value)]))
        if code is codes.IN:
            return self._characters(characters.members(value))
        raise Unwritable(f"{str(code).lower()} in a pattern is not supported")

    def _anchor(self, value: Any, first: bool, last: bool) -> str:
        if value is codes.AT_BEGINNING and first:
            self._starts = True
        elif value is codes.AT_END and last:
            self._ends = True
        else:
            raise Unwritable(f"{str(value).lower()} inside a pattern is not supported")
        return ""

    def _repeat(self, value: Any, missing: int) -> tuple[str, int]:
        low, high, item = value
        if missing and item.getwidth() == (1, 1):
            raised = min(int(high), low + missing)
            low, missing = raised, missing - (raised - low)
        if self._longest is not None:
            high = max(low, min(int(high), self._longest))
        text = self._sequence(item, left=False, right=False)
        return f"(?:{text}){{{low},{'' if high is parser.MAXREPEAT else high}}}", missing

    def _characters(self, ranges: characters.Ranges) -> str:
        if self._quoted:
            ranges = characters.without_escaped(ranges)
        elif characters.contains(ranges, "<"):
            raise Unwritable("it may write a tag")
        if not ranges:
            raise Unwritable("it demands characters that JSON escapes")
        return characters.written(ranges)


def matches(pattern: str, text: str) -> bool:
    try:
        return re.search(_NAMED.sub("(?P<", pattern), text) is not None
    except re.error as error:
        raise Unwritable(f"the pattern cannot be read ({error})") from None

"""Sets of characters in a pattern, as ranges of code points.

Owns: what `\\d`, `.` and the like mean, and how a set is written. Where ECMA-262 and Python differ,
a set has only the characters on which they agree. xgrammar misreads a negated set with characters
beyond ASCII, so every set is written as what it contains.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from re import _constants as codes  # type: ignore[attr-defined]
from typing import Any

Ranges = list[tuple[int, int]]
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
# Where UTF-8 takes one byte more, and where its last first byte of three and of four bytes begins.
_BORDERS = (0x80, 0x800, 0xD000, 0x10000, 0x100000)
_ESCAPED = frozenset(r"\^$.|?*+()[]{}/-")


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Every character that is in none of `ranges`."""
    free, start = [], 0
    for low, high in sorted([*ranges, _SURROGATES]):
        if low > start:
            free.append((start, low - 1))
        start = max(start, high + 1)
    return [*free, (start, _LAST)] if start <= _LAST else free


def _of(text: str) -> Ranges:
    return [(ord(character), ord(character)) for character in text]


_DIGIT: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [*_DIGIT, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE = _of(" \t\n\r\f\v")
_EVERY_SPACE = [
    *_SPACE,
    *_of("\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"),
    (0x2000, 0x200A),
]
_CLASSES: dict[Any, Ranges] = {
    codes.CATEGORY_DIGIT: _DIGIT,
    codes.CATEGORY_WORD: _WORD,
    codes.CATEGORY_SPACE: _SPACE,
    codes.CATEGORY_NOT_DIGIT: complement(_DIGIT),
    codes.CATEGORY_NOT_WORD: complement([*_WORD, (0x80, _LAST)]),
    codes.CATEGORY_NOT_SPACE: complement([(0x1C, 0x1F), *_EVERY_SPACE]),
}
# What a negated set must leave out, where that is more than the set itself.
_WIDER = {
    codes.CATEGORY_SPACE: [(0x1C, 0x1F), *_EVERY_SPACE],
    codes.CATEGORY_WORD: [*_WORD, (0x80, _LAST)],
}
NOT_DOT = _of("\n\r\u2028\u2029")


def members(items: list[Any]) -> Ranges:
    """The characters of a set, as Python's parser lists its items."""
    negated = items[0][0] is codes.NEGATE
    ranges = [each for item in items[negated:] for each in _member(item[0], item[1], negated)]
    return complement(ranges) if negated else ranges


def _member(code: Any, value: Any, negated: bool) -> Ranges:
    if code is codes.LITERAL:
        return [(value, value)]
    if code is codes.RANGE:
        return [value]
    return _WIDER.get(value, _CLASSES[value]) if negated else _CLASSES[value]


def written(ranges: Ranges) -> str:
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _escape(ranges[0][0])
    pieces = (
        _escape(low) + ("" if low == high else f"-{_escape(high)}")
        for low, high in _within_borders(ranges)
    )
    return f"[{''.join(pieces)}]"


def _within_borders(ranges: Ranges) -> Ranges:
    """The same characters, in ranges that cross no border. Of a range across one, xgrammar takes
    bytes that are no UTF-8, and a string of one character is read as up to four."""
    return [
        (max(low, first), min(high, last - 1))
        for low, high in ranges
        for first, last in pairwise((0, *_BORDERS, _LAST + 1))
        if low < last and high >= first
    ]


def contains(ranges: Ranges, character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in ranges)


def without_escaped(ranges: Ranges) -> Ranges:
    """The characters that JSON writes as they are."""
    return complement([*complement(ranges), (0, 0x1F), *_of('"\\')])


def _escape(character: int) -> str:
    if chr(character) in _ESCAPED:
        return f"\\{chr(character)}"
    return f"\\x{character:02x}" if character < 0x20 else chr(character)

"""The kinds of values that a request field can have.

Owns: one class per kind. Each says what it expects and finds what is wrong with a value. The table
of `fields.py` is built from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

INT32, INT64 = 2**31 - 1, 2**63 - 1  # the largest that tensors and the scheduler's messages hold
VOCAB = "VOCAB"  # as a bound: the number of tokens in the served model's vocabulary
_DEPTH = 32  # of JSON that is passed on; the scheduler's decoder recurses


class Wrong(NamedTuple):
    """A value that does not fit: where it lies in the request, and what is expected there."""

    where: str
    value: object
    expected: str


class Kind(Protocol):
    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        """What does not fit in `value`, which is not None. `vocab`: size of the vocabulary."""
        ...


def _bound(bound: int | str, vocab: int) -> int:
    return vocab if isinstance(bound, str) else bound


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes)


@dataclass(frozen=True)
class Integer:
    low: int
    high: int | str = INT64

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        high = _bound(self.high, vocab)
        if not _is_integer(value) or not self.low <= value <= high:
            yield Wrong(where, value, f"an integer from {self.low} to {high}")


@dataclass(frozen=True)
class Number:
    low: float
    high: float

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        number = _is_integer(value) or isinstance(value, float)
        if not number or not self.low <= value <= self.high or not math.isfinite(value):
            yield Wrong(where, value, f"a number from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Flag:
    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not isinstance(value, bool):
            yield Wrong(where, value, "true or false")


@dataclass(frozen=True)
class OneOf:
    choices: tuple[object, ...]

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not any(type(value) is type(choice) and value == choice for choice in self.choices):
            yield Wrong(where, value, "one of " + ", ".join(map(repr, self.choices)))


@dataclass(frozen=True)
class Text:
    """Text that can be sent as UTF-8: no lone surrogate."""

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not isinstance(value, str):
            yield Wrong(where, value, "text")
            return
        try:
            value.encode()
        except UnicodeEncodeError as error:
            yield Wrong(where, value[error.start : error.end], "text that UTF-8 can encode")


@dataclass(frozen=True)
class ListOf:
    """A list of at most `longest` values of one kind, or with `or_one` also a single one."""

    item: Kind
    longest: int = INT64
    or_one: bool = False

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not _is_list(value):
            if self.or_one:
                yield from self.item.wrong(where, value, vocab)
            else:
                yield Wrong(where, value, "a list")
        elif len(value) > self.longest:
            yield Wrong(where, f"a list of {len(value)}", f"at most {self.longest} entries")
        else:
            for index, item in enumerate(value):
                yield from self.item.wrong(f"{where}[{index}]", item, vocab)


@dataclass(frozen=True)
class TokenIds:
    """A flat list of token ids of the vocabulary."""

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not _is_list(value):
            yield Wrong(where, value, "a flat list of token ids")
        elif not _all_within(value, vocab):
            for index, item in enumerate(value):
                if not _is_integer(item) or not 0 <= item < vocab:
                    yield Wrong(f"{where}[{index}]", item, f"a token id from 0 to {vocab - 1}")


def _all_within(ids: Any, vocab: int) -> bool:
    """3 ms for 100,000 ids. A loop takes 40, in which the server answers nobody."""
    return not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab)


@dataclass(frozen=True)
class ByTokenId:
    """An object whose names are token ids (as text) and whose values have one kind."""

    item: Kind

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not isinstance(value, Mapping):
            yield Wrong(where, value, "an object of token ids and numbers")
            return
        for name, item in value.items():
            if not str(name).isdecimal() or int(name) >= vocab:
                yield Wrong(f"{where}: key", name, f"a token id from 0 to {vocab - 1}")
            yield from self.item.wrong(f"{where}[{name!r}]", item, vocab)


@dataclass(frozen=True)
class Object:
    """An object with these fields and no others."""

    fields: Mapping[str, Kind]

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not isinstance(value, Mapping):
            yield Wrong(where, value, "an object")
            return
        for name, item in value.items():
            if name not in self.fields:
                yield Wrong(f"{where}.{name}", item, "one of the fields " + ", ".join(self.fields))
            elif item is not None:
                yield from self.fields[name].wrong(f"{where}.{name}", item, vocab)


@dataclass(frozen=True)
class Json:
    """JSON that SGLang hands on as it is: integers of 64 bits, and not nested deeply. An object at
    the top if `is_object`."""

    is_object: bool = False

    def wrong(self, where: str, value: Any, vocab: int, depth: int = _DEPTH) -> Iterator[Wrong]:
        if self.is_object and depth == _DEPTH and not isinstance(value, Mapping):
            yield Wrong(where, value, "an object")
        elif _is_integer(value) and not -INT64 <= value <= INT64:
            yield Wrong(where, value, f"integers from {-INT64} to {INT64}")
        elif depth == 0:
            yield Wrong(where, "deeper", f"at most {_DEPTH} levels of nesting")
        elif isinstance(value, str):
            yield from Text().wrong(where, value, vocab)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                yield from self.wrong(f"{where}.{name}", item, vocab, depth - 1)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                yield from self.wrong(f"{where}[{index}]", item, vocab, depth - 1)


@dataclass(frozen=True)
class Absent:
    """A field that must stay out, with the reason. Empty values are taken as left out."""

    reason: str

    def wrong(self, where: str, value: Any, vocab: int) -> Iterator[Wrong]:
        if not _is_empty(value):
            yield Wrong(where, value, f"it to be left out: {self.reason}")


def _is_empty(value: object) -> bool:
    if isinstance(value, list):
        return all(item is None for item in value)
    return value is False or value in ("", {})

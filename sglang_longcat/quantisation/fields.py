"""Reads the keys of `quantization_config`, each with its type.

Owns: the error about a value of another type, which names the key. config.json is written by many
tools and by hand, and a list where an object belongs would otherwise end in a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from sglang_longcat.quantisation.packed import FormatError

_SHOWN = 80  # characters of a wrong value in the message


@dataclass(frozen=True)
class Fields:
    """One object of config.json. null is a key that is not there. Methods raise FormatError."""

    raw: Mapping[str, Any]
    where: str = "quantization_config"

    @classmethod
    def of(cls, value: object, where: str = "quantization_config") -> Fields:
        """value: an object, or null for an empty one."""
        if value is not None and not isinstance(value, Mapping):
            _wrong(where, value, "an object")
        return cls(value or {}, where)

    def integer(self, key: str) -> int | None:
        value = self.raw.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            _wrong(f"{self.where}.{key}", value, "an integer")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, bool):
            _wrong(f"{self.where}.{key}", value, "true or false")
        return default if value is None else value

    def text(self, key: str, default: str) -> str:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            _wrong(f"{self.where}.{key}", value, "a string")
        return default if value is None else value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings, or of lists of them."""
        return tuple(self._strings(key, self.raw.get(key)))

    def _strings(self, key: str, value: object) -> Iterator[str]:
        if isinstance(value, str) or not isinstance(value, Sequence | None):
            _wrong(f"{self.where}.{key}", value, "a list of strings")
        for item in value or ():
            if isinstance(item, str):
                yield item
            elif item is None:
                _wrong(f"{self.where}.{key}", value, "a list of strings")
            else:
                yield from self._strings(key, item)

    def object(self, key: str) -> Fields:
        return Fields.of(self.raw.get(key), f"{self.where}.{key}")

    def objects(self, key: str) -> dict[str, Fields]:
        """The values of an object, each an object or null."""
        inner = self.object(key)
        where = inner.where
        return {name: Fields.of(own, f"{where}[{name!r}]") for name, own in inner.raw.items()}


def _wrong(where: str, value: object, expected: str) -> NoReturn:
    shown = repr(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[:_SHOWN]}..."
    raise FormatError(f"config.json: {where} is {shown}; expected {expected}. Fix config.json.")

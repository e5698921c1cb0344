"""Writes the JSON of arguments that arrive as pairs of tagged keys and values.

Owns: separators, quotes, and which values can be emitted before they end. `values` knows the types.
"""

from __future__ import annotations

from sglang_longcat.tool_parser import values


class PairWriter:
    """Call `open` for a key, `grow` for each piece of its value, `close` at its end.

    Each returns the next piece of the JSON object. The caller writes the braces around it.
    """

    def __init__(self, schema: values.Schema) -> None:
        self._schema = schema
        self._keys: set[str] = set()
        self._types: frozenset[str] | None = None
        self._value: list[str] | None = None  # pieces of a value that is not known to be a string
        self._repeated = False

    def open(self, key: str) -> str:
        # The first pair with a key counts: a value may contain a forged pair.
        self._repeated = key in self._keys
        self._types = values.property_types(self._schema, key)
        streamed = self._types == values.STRING and not self._repeated
        self._value = None if streamed else []
        separator = ", " if self._keys else ""
        self._keys.add(key)
        if self._repeated:
            return ""
        return f"{separator}{values.quote(key)}: " + ('"' if streamed else "")

    def grow(self, text: str) -> str:
        if self._value is None:
            return values.quote(text)[1:-1]
        self._value.append(text)
        return ""

    def close(self) -> str:
        if self._value is None:
            return '"'
        return "" if self._repeated else values.to_json("".join(self._value), self._types)

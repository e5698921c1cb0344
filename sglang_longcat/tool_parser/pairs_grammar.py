"""The arguments of a call as pairs of tagged keys and values.

Owns: which values a pair can carry. The reader (`pairs`, `values`) takes the text of an argument
that can only be a string as that string; of any other argument it reads JSON. So a string is
written bare where the reader expects one, and JSON everywhere else. What fits neither (say, a
string whose pattern may write a tag) makes the whole call a JSON object.
"""

from __future__ import annotations

import re
from typing import Any

from sglang_longcat.tool_parser import values
from sglang_longcat.tool_parser.scan import CALL, END_CALL, END_KEY, END_VALUE, KEY, VALUE
from sglang_longcat.tool_parser.schema import scalars
from sglang_longcat.tool_parser.schema.document import conjunction
from sglang_longcat.tool_parser.schema.exclusive import schemas_of
from sglang_longcat.tool_parser.schema.facts import Facts
from sglang_longcat.tool_parser.schema.refusal import SchemaRefused
from sglang_longcat.tool_parser.schema.writer import Writer

_Format = dict[str, Any]
_TAGS = [CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE]
_FREE = {"type": "any_text", "excludes": _TAGS}
_KEY = re.compile(r"[^\s<{](?:[^<]*[^\s<])?")


class PairsGrammar:
    """For one tool; `tool` is its schema as the reader gets it."""

    def __init__(self, tool: Any, writer: Writer) -> None:
        self._tool, self._writer = tool, writer

    def write(self, resolved: Any, facts: Facts) -> _Format | None:
        """The pairs of `resolved`, one alternative of the arguments; None if they need JSON."""
        plain = {"type", "properties", "required", "additionalProperties", "$defs"}
        if not resolved.keys() <= plain or resolved.get("additionalProperties") is not False:
            return None
        elements: list[_Format] = [{"type": "const_string", "value": ""}]
        for key, schema in resolved["properties"].items():
            value = self._value(key, schema, facts)
            if value is None or not _KEY.fullmatch(key):
                return None
            begin = f"{KEY}{key}{END_KEY}\n{VALUE}"
            pair = {"type": "tag", "begin": begin, "content": value, "end": f"{END_VALUE}\n"}
            optional = key not in resolved["required"]
            elements.append({"type": "optional", "content": pair} if optional else pair)
        return {"type": "sequence", "elements": elements}

    def _value(self, key: str, schema: Any, facts: Facts) -> _Format | None:
        if values.property_types(self._tool, key) != values.STRING:
            return {"type": "json_schema", "json_schema": self._writer.resolved(schema)}
        found = self._writer.reader.of(conjunction(schemas_of(facts, key)))
        bare = [each for one in found for each in self._bare(one)]
        if None in bare:
            return None
        if _FREE in bare or len(bare) == 1:
            return _FREE if _FREE in bare else bare[0]
        return {"type": "or", "elements": bare}

    def _bare(self, facts: Facts) -> list[_Format | None]:
        """The text of a string; None where it could not be told from a tag."""
        if facts.values is not None:
            return [_constant(value) for value in facts.values]
        try:
            written = scalars.string(facts, self._writer.document, quoted=False)
        except SchemaRefused:
            return [None]
        if "pattern" in written:
            return [{"type": "regex", "pattern": written["pattern"]}]
        return [_FREE]


def _constant(value: str) -> _Format | None:
    return None if "<" in value else {"type": "const_string", "value": value}

"""Objects and arrays as xgrammar obeys them.

Owns: which names an object may have. The values of properties and items are conjunctions, which
`writer` turns into references.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sglang_longcat.tool_parser.schema import patterns
from sglang_longcat.tool_parser.schema.alternatives import Alternatives
from sglang_longcat.tool_parser.schema.document import ANYTHING, Conjunction, conjunction
from sglang_longcat.tool_parser.schema.exclusive import schemas_of
from sglang_longcat.tool_parser.schema.facts import Facts
from sglang_longcat.tool_parser.schema.refusal import SchemaRefused
from sglang_longcat.tool_parser.schema.scalars import string

Refer = Callable[[Conjunction], Any]


def array(facts: Facts, refer: Refer) -> dict[str, Any] | None:
    least, most = _count(facts, "minItems"), _count(facts, "maxItems")
    size = max((len(part.prefix) for part in facts.arrays), default=0)
    size = size if most is None else min(size, most)
    prefix = [refer(_item(facts, at)) for at in range(size)]
    rests = conjunction(part.rest for part in facts.arrays if part.rest is not None)
    free = bool(rests) or not prefix or (least or 0) > size
    if most is not None and (least or 0) > most:
        return None
    return {
        "type": "array",
        **({"prefixItems": prefix} if prefix else {}),
        "items": refer(rests) if free and most != size else False,
        **({"minItems": least} if least else {}),
        **({"maxItems": most} if most is not None else {}),
    }


def _item(facts: Facts, at: int) -> Conjunction:
    found = (part.prefix[at] if at < len(part.prefix) else part.rest for part in facts.arrays)
    return conjunction(schema for schema in found if schema is not None)


def object_(facts: Facts, refer: Refer, reader: Alternatives) -> dict[str, Any] | None:
    names = _Names(facts, reader)
    declared = names.declared()
    if not declared.keys() >= set(facts.required):
        return None
    least, most = _count(facts, "minProperties") or 0, _count(facts, "maxProperties")
    if most is not None and most < len(facts.required):
        return None
    extras = {} if declared else names.patterns(refer)
    if not extras and (others := names.others(bool(declared))) is not None:
        extras = {"additionalProperties": refer(others)}
    if extras and least > max(len(facts.required), 1):
        reason = "names beside the declared ones may repeat"
        raise SchemaRefused(facts.sources[-1], "minProperties", reason)
    if not extras and least > len(declared):
        return None
    return {
        "type": "object",
        "properties": {name: refer(schemas) for name, schemas in declared.items()},
        "required": [name for name in declared if name in facts.required],
        "additionalProperties": False,
        **extras,
        **({"minProperties": least} if least > len(facts.required) else {}),
        **(
            {"maxProperties": most} if most is not None and (extras or most < len(declared)) else {}
        ),
    }


class _Names:
    """The names of one object's properties."""

    def __init__(self, facts: Facts, reader: Alternatives) -> None:
        self._facts, self._reader = facts, reader
        self._allowed = reader.of(facts.names) if facts.names else [Facts()]
        self._allowed = [each for each in self._allowed if "string" in each.types]

    def declared(self) -> dict[str, Conjunction]:
        names = [name for part in self._facts.objects for name in part.properties]
        names += self._facts.required
        if not names and all(each.values is not None for each in self._allowed):
            names = [name for each in self._allowed for name in each.values or ()]
        accepts = self._reader.document.accepts
        return {
            name: conjunction(schemas_of(self._facts, name))
            for name in dict.fromkeys(names)
            if name not in self._facts.forbidden
            and isinstance(name, str)
            and all(accepts(schema, name) for schema in self._facts.names)
        }

    def others(self, closed: bool) -> Conjunction | None:
        """The schemas of values with other names; None if there shall be no other names."""
        parts = self._facts.objects
        given = conjunction(part.others for part in parts if part.others is not None)
        hidden = self._facts.forbidden or self._facts.names or any(part.patterns for part in parts)
        if hidden or (closed and not given):
            return None
        return given if given or not closed else None

    def patterns(self, refer: Refer) -> dict[str, Any]:
        """One pattern for the names that `patternProperties` or `propertyNames` describe."""
        found = [text for part in self._facts.objects for text in part.patterns]
        limits = [each for each in self._allowed if each.patterns or each.limits or each.formats]
        at = (self._facts.sources or ("",))[-1]
        if found and self._facts.names:
            raise SchemaRefused(at, "propertyNames", "beside patternProperties")
        if found:
            try:
                text = patterns.write(found[0], quoted=True)
            except patterns.Unwritable as error:
                raise SchemaRefused(at, "patternProperties", str(error)) from None
            return {"patternProperties": {text: refer(self._matching(found[0]))}}
        if not self._facts.names:
            return {}
        if len(self._allowed) > 1:
            raise SchemaRefused(at, "propertyNames", "it has several alternatives")
        others = conjunction(p.others for p in self._facts.objects if p.others is not None)
        if not limits:
            return {"additionalProperties": refer(others)} if self._allowed else {}
        written = string(limits[0], self._reader.document)
        if "pattern" not in written:
            raise SchemaRefused(at, "propertyNames", f"'{written['format']}' for names")
        return {"patternProperties": {written["pattern"]: refer(others)}}

    def _matching(self, pattern: str) -> Conjunction:
        """What values satisfy whatever other patterns the name matches too."""
        schemas = [schema for part in self._facts.objects for schema in part.patterns.values()]
        schemas += [
            part.others
            for part in self._facts.objects
            if part.others is not None and pattern not in part.patterns
        ]
        return conjunction(schemas)


def _count(facts: Facts, keyword: str) -> int | None:
    given = facts.limits.get(keyword)
    return None if given is None else math.ceil(given)


__all__ = ["ANYTHING", "Refer", "array", "object_"]

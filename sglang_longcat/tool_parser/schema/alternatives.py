"""The alternatives of a schema: all of its unions, references and intersections worked out.

Owns: which keywords there are, and what `$ref`, `allOf`, `anyOf` and `oneOf` mean. A keyword that
is not named here is an annotation, as JSON Schema says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sglang_longcat.tool_parser.schema import exclusive
from sglang_longcat.tool_parser.schema.document import NOTHING, Conjunction, Document, child
from sglang_longcat.tool_parser.schema.facts import (
    EVERY,
    LIMITS,
    NUMERIC,
    ArrayPart,
    Facts,
    ObjectPart,
    merge,
    typed,
)
from sglang_longcat.tool_parser.schema.refusal import SchemaRefused

# Each cannot be enforced on values of the types behind it.
UNENFORCED: dict[str, frozenset[str]] = {
    **dict.fromkeys(("not", "if", "$dynamicRef", "$recursiveRef"), EVERY),
    "multipleOf": NUMERIC,
    **dict.fromkeys(("uniqueItems", "contains", "unevaluatedItems"), frozenset(["array"])),
    **dict.fromkeys(("dependentRequired", "dependentSchemas"), frozenset(["object"])),
    **dict.fromkeys(("dependencies", "unevaluatedProperties"), frozenset(["object"])),
}
_MOST = 100  # alternatives of one schema: each makes the grammar longer


class Alternatives:
    """Reads one document. `busy`: schemas that are being read and were not entered through a
    property or an item. A reference back to one of them adds no value."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._known: dict[Conjunction, list[Facts]] = {}

    def of(self, schemas: Conjunction) -> list[Facts]:
        """The alternatives of a value that must satisfy all `schemas`. Empty: there is no value."""
        if schemas not in self._known:
            self._known[schemas] = [Facts()]  # until it is read: may be anything
            found = [Facts()]
            try:
                for pointer in schemas:
                    found = self._product(found, self._read(pointer, frozenset()), pointer)
            except SchemaRefused:
                del self._known[schemas]
                raise
            self._known[schemas] = [each for each in map(self._settled, found) if _possible(each)]
        return self._known[schemas]

    def _settled(self, facts: Facts) -> Facts:
        """`facts` with the values that satisfy every keyword, even those without a grammar."""
        if facts.values is None:
            return typed(facts)
        accepts = self.document.accepts
        kept = (v for v in facts.values if all(accepts(source, v) for source in facts.sources))
        return Facts(values=tuple(kept), sources=facts.sources)

    def _product(self, left: list[Facts], right: list[Facts], pointer: str) -> list[Facts]:
        if len(left) * len(right) > _MOST:
            raise SchemaRefused(pointer, "anyOf", f"it has more than {_MOST} combinations")
        merged = (merge(one, other) for one in left for other in right)
        return [each for each in merged if each.types]

    def _read(self, pointer: str, busy: frozenset[str]) -> list[Facts]:
        schema = self.document.at(pointer)
        if schema is False or pointer in busy:
            return []
        if schema is True or not schema:
            return [Facts()]
        busy |= {pointer}
        found = [self._own(schema, pointer)]
        for part in self._conjuncts(schema, pointer):
            found = self._product(found, self._read(part, busy), pointer)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                branches = [
                    self._product(found, self._read(child(pointer, keyword, at), busy), pointer)
                    for at in range(len(schema[keyword]))
                ]
                if keyword == "oneOf":
                    branches = exclusive.separate(branches, pointer, self)
                found = [facts for branch in branches for facts in branch]
        return [_closed(each) for each in found] if _closes(schema) else found

    def _conjuncts(self, schema: Mapping[str, Any], pointer: str) -> Iterator[str]:
        if "$ref" in schema:
            yield self.document.target(pointer, schema["$ref"])
        for at in range(len(schema.get("allOf", ()))):
            yield child(pointer, "allOf", at)

    def _own(self, schema: Mapping[str, Any], pointer: str) -> Facts:
        """The keywords of one schema, without the schemas that it refers to or combines."""
        given = schema.get("type", sorted(EVERY))
        types = frozenset([given] if isinstance(given, str) else given)
        values = (schema["const"],) if "const" in schema else schema.get("enum")
        return Facts(
            types=types | (NUMERIC if "number" in types else frozenset()),
            values=None if values is None else tuple(values),
            sources=(pointer,),
            limits={name: schema[name] for name in schema.keys() & LIMITS},
            patterns=(pointer,) if "pattern" in schema else (),
            formats=(schema["format"],) if "format" in schema else (),
            objects=tuple(_object_parts(schema, pointer)),
            required=tuple(schema.get("required", ())),
            names=(child(pointer, "propertyNames"),) if "propertyNames" in schema else (),
            arrays=tuple(_array_parts(schema, pointer)),
            unenforced=tuple(_unenforced(schema, pointer)),
        )


def _object_parts(schema: Mapping[str, Any], pointer: str) -> Iterator[ObjectPart]:
    if schema.keys() & {"properties", "patternProperties", "additionalProperties"}:
        properties, patterns = (
            {name: child(pointer, keyword, name) for name in schema.get(keyword, {})}
            for keyword in ("properties", "patternProperties")
        )
        others = "additionalProperties" in schema
        yield ObjectPart(
            properties, patterns, child(pointer, "additionalProperties") if others else None
        )


def _array_parts(schema: Mapping[str, Any], pointer: str) -> Iterator[ArrayPart]:
    if schema.keys() & {"prefixItems", "items"}:
        prefix = range(len(schema.get("prefixItems", ())))
        rest = child(pointer, "items") if "items" in schema else None
        yield ArrayPart(tuple(child(pointer, "prefixItems", at) for at in prefix), rest)


def _unenforced(schema: Mapping[str, Any], pointer: str) -> Iterator[tuple[str, str]]:
    """Keywords that no grammar here enforces, unless they demand nothing."""
    idle = {
        "not": schema.get("not") is False,
        "if": not schema.keys() & {"then", "else"},
        "multipleOf": schema.get("multipleOf") == 1 and schema.get("type") == "integer",
        "uniqueItems": not schema.get("uniqueItems") or schema.get("maxItems", 2) < 2,
        "contains": schema.get("minContains") == 0 and "maxContains" not in schema,
        "unevaluatedItems": schema.get("unevaluatedItems") is True or "items" in schema,
        "unevaluatedProperties": schema.get("unevaluatedProperties") in (True, False),
    }
    for keyword in UNENFORCED.keys() & schema.keys():
        if not idle.get(keyword, False):
            yield pointer, keyword
    if pointer and isinstance(schema.get("$id"), str):
        yield pointer, "$id"


def _closes(schema: Mapping[str, Any]) -> bool:
    return schema.get("unevaluatedProperties") is False and "additionalProperties" not in schema


def _closed(facts: Facts) -> Facts:
    """`unevaluatedProperties: false`: no names but those that this alternative declares."""
    names = {name: pointer for part in facts.objects for name, pointer in part.properties.items()}
    patterns = {text: at for part in facts.objects for text, at in part.patterns.items()}
    return merge(facts, Facts(objects=(ObjectPart(names, patterns, NOTHING),)))


def _possible(facts: Facts) -> bool:
    return bool(facts.types) and facts.values != ()

"""Writes the schema that xgrammar obeys exactly, from the schema that a client sent.

Owns: `$defs` of the result, one for each conjunction, and which of them can end. A recursion that
never ends, and a schema that no value satisfies, become `false`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sglang_longcat.tool_parser.schema import containers, scalars
from sglang_longcat.tool_parser.schema.alternatives import UNENFORCED, Alternatives
from sglang_longcat.tool_parser.schema.document import Conjunction, Document
from sglang_longcat.tool_parser.schema.facts import NUMERIC, Facts
from sglang_longcat.tool_parser.schema.refusal import SchemaRefused

_ORDER = ("null", "boolean", "integer", "number", "string", "array", "object")


class Writer:
    def __init__(self, root: object) -> None:
        self.document = Document(root)
        self.reader = Alternatives(self.document)
        self._names: dict[Conjunction, str] = {}
        self._written: dict[str, Any] = {}

    def refer(self, schemas: Conjunction) -> Any:
        """A reference to what satisfies all of `schemas`."""
        if not schemas:
            return {}
        name = self._names.setdefault(schemas, f"d{len(self._names)}")
        return {"$ref": f"#/$defs/{name}"}

    def drain(self) -> None:
        while waiting := [s for s, name in self._names.items() if name not in self._written]:
            for schemas in waiting:
                found = [self.one(each) for each in self.reader.of(schemas)]
                self._written[self._names[schemas]] = _any_of(found)

    def one(self, facts: Facts) -> Any:
        """One alternative; False if no value satisfies it."""
        if facts.values is not None:
            return _enumeration(facts)
        if facts.types == Facts().types and not facts.unenforced:
            return {}
        kinds = [name for name in _ORDER if name in facts.types]
        if "number" in kinds:
            kinds.remove("integer")
        return _any_of([self._typed(facts, kind) for kind in kinds])

    def _typed(self, facts: Facts, kind: str) -> Any:
        for pointer, keyword in facts.unenforced:
            if kind in UNENFORCED.get(keyword, NUMERIC | {kind}):
                raise SchemaRefused(pointer, keyword, "the grammar has no rule for it")
        if kind in ("null", "boolean"):
            return {"type": kind}
        written: dict[str, Any] | None
        if kind in NUMERIC:
            written = scalars.number(facts, whole=kind == "integer")
        elif kind == "string":
            written = _string(facts, self.document)
        elif kind == "array":
            written = containers.array(facts, self.refer)
        else:
            written = containers.object_(facts, self.refer, self.reader)
        return False if written is None else written

    def resolved(self, schema: Any) -> Any:
        """`schema` with the `$defs` that it needs, and without what cannot end; False if it cannot
        itself."""
        self.drain()
        able = _finite(self._written)
        pruned = _pruned(schema, able)
        if pruned is False:
            return False
        needed: dict[str, Any] = {}
        waiting = list(_references(pruned))
        while waiting:
            name = waiting.pop()
            if name not in needed:
                needed[name] = _pruned(self._written[name], able)
                waiting += _references(needed[name])
        return {**pruned, "$defs": needed} if needed else pruned


def _enumeration(facts: Facts) -> Any:
    if any(map(_is_rounded, facts.values or ())):
        raise SchemaRefused(facts.sources[-1], "enum", "xgrammar rounds integers beyond 64 bits")
    return {"enum": list(facts.values)} if facts.values else False


def _is_rounded(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(map(_is_rounded, value.values() if isinstance(value, dict) else value))
    return isinstance(value, int) and abs(value) >= 2**63


def _string(facts: Facts, document: Document) -> dict[str, Any] | None:
    most = facts.limits.get("maxLength")
    if most is not None and most < facts.limits.get("minLength", 0):
        return None
    return scalars.string(facts, document)


def _any_of(found: list[Any]) -> Any:
    some = [each for each in found if each is not False]
    if not some or {} in some:
        return {} if some else False
    return some[0] if len(some) == 1 else {"anyOf": some}


def _finite(written: dict[str, Any]) -> frozenset[str]:
    """The definitions that some finite value satisfies."""
    able: frozenset[str] = frozenset()
    while True:
        more = frozenset(name for name, schema in written.items() if _ends(schema, able))
        if more == able:
            return able
        able = more


def _ends(schema: Any, able: frozenset[str]) -> bool:
    return _pruned(schema, able) is not False


def _pruned(schema: Any, able: frozenset[str]) -> Any:
    """`schema` without branches, properties and items that no finite value satisfies."""
    if schema is False or not schema:
        return schema
    if "$ref" in schema:
        return schema if schema["$ref"].rpartition("/")[2] in able else False
    if "anyOf" in schema:
        return _any_of([_pruned(each, able) for each in schema["anyOf"]])
    prune: dict[str, Callable[..., Any]] = {"object": _pruned_object, "array": _pruned_array}
    return prune.get(schema.get("type", ""), lambda same, _: same)(schema, able)


def _pruned_object(schema: Any, able: frozenset[str]) -> Any:
    kept = {n: each for n, each in schema["properties"].items() if _ends(each, able)}
    required = schema["required"]
    if not kept.keys() >= set(required):
        return False
    pruned = {**schema, "properties": kept}
    if not _ends(schema["additionalProperties"], able):
        pruned["additionalProperties"] = False
    matched = schema.get("patternProperties", {})
    pruned["patternProperties"] = {n: each for n, each in matched.items() if _ends(each, able)}
    if not pruned["patternProperties"]:
        del pruned["patternProperties"]
    open_ended = pruned["additionalProperties"] is not False or "patternProperties" in pruned
    if not open_ended and len(kept) < schema.get("minProperties", 0):
        return False
    return pruned


def _pruned_array(schema: Any, able: frozenset[str]) -> Any:
    prefix, least = schema.get("prefixItems", []), schema.get("minItems", 0)
    size = next((at for at, each in enumerate(prefix) if not _ends(each, able)), len(prefix))
    items = schema["items"] if size == len(prefix) and _ends(schema["items"], able) else False
    if items is False and least > size:
        return False
    pruned = {**schema, "prefixItems": prefix[:size], "items": items}
    if not pruned["prefixItems"]:
        del pruned["prefixItems"]
    if items is False and not size:  # only the empty array
        return {"enum": [[]]}
    return pruned


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"].rpartition("/")[2]
        parts: list[Any] = [*schema.get("anyOf", ()), *schema.get("prefixItems", ())]
        parts += [schema.get("items"), schema.get("additionalProperties")]
        parts += [*schema.get("properties", {}).values()]
        parts += [*schema.get("patternProperties", {}).values()]
        for part in parts:
            yield from _references(part)

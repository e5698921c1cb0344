"""`oneOf`: branches made so narrow that no value satisfies two of them.

Owns: this narrowing. xgrammar reads `oneOf` as `anyOf`. Two branches are apart if their types,
values or required properties say so; if not, a property that tells them apart is made required, or
each branch forbids one that only the other requires.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

from sglang_longcat.tool_parser.schema.document import Conjunction, Document
from sglang_longcat.tool_parser.schema.facts import Facts, merge, typed
from sglang_longcat.tool_parser.schema.patterns import matches
from sglang_longcat.tool_parser.schema.refusal import SchemaRefused

_DEEPEST = 3  # properties of properties that may tell two branches apart


class _Reader(Protocol):
    document: Document

    def of(self, schemas: Conjunction) -> list[Facts]: ...


def separate(branches: list[list[Facts]], pointer: str, reader: _Reader) -> list[list[Facts]]:
    apart = [[typed(facts) for facts in branch] for branch in branches]
    for at, branch in enumerate(apart):
        for other_at in range(at):
            other = apart[other_at]
            for one in range(len(branch)):
                for two in range(len(other)):
                    pair = _apart(branch[one], other[two], reader)
                    if pair is None:
                        reason = f"branches {other_at} and {at} overlap; use anyOf"
                        raise SchemaRefused(pointer, "oneOf", reason)
                    branch[one], other[two] = pair
    return apart


def _apart(one: Facts, two: Facts, reader: _Reader) -> tuple[Facts, Facts] | None:
    """Both, each narrowed until the other one as it was accepts none of its values; None if that
    cannot be done."""
    if disjoint(one, two, reader):
        return one, two
    if one.types != {"object"} or two.types != {"object"}:
        return None
    for name in _declared(one) & _declared(two):
        required = [_requiring(facts, name) for facts in (one, two)]
        if disjoint(required[0], required[1], reader):
            return required[0], required[1]
    narrow_one, narrow_two = _forbidding(one, two), _forbidding(two, one)
    return (narrow_one, narrow_two) if narrow_one and narrow_two else None


def _forbidding(facts: Facts, other: Facts) -> Facts | None:
    """`facts` without a name that only `other` requires; None if there is no such name."""
    names = [name for name in other.required if name not in facts.required]
    return replace(facts, forbidden=facts.forbidden | {names[0]}) if names else None


def disjoint(one: Facts, two: Facts, reader: _Reader, depth: int = _DEEPEST) -> bool:
    """True if surely no value satisfies both."""
    both = merge(one, two)
    if not both.types or set(both.required) & both.forbidden:
        return True
    values = one.values if one.values is not None else two.values
    if values is not None:
        accepts = reader.document.accepts
        return not any(all(accepts(source, v) for source in both.sources) for v in values)
    if _no_room(both):
        return True
    if both.types != {"object"} or not depth:
        return False
    return any(_no_value(both, name, reader, depth) for name in both.required)


def _no_room(both: Facts) -> bool:
    """True for numbers between bounds that leave none."""
    low, high = both.limits.get("minimum"), both.limits.get("maximum")
    numeric = both.types <= {"integer", "number"}
    return numeric and low is not None and high is not None and low > high


def _no_value(both: Facts, name: str, reader: _Reader, depth: int) -> bool:
    found = [Facts()]
    for schema in dict.fromkeys(schemas_of(both, name)):
        options = reader.of((schema,))
        found = [
            merge(left, right)
            for left in found
            for right in options
            if not disjoint(left, right, reader, depth - 1)
        ]
    return not found


def _requiring(facts: Facts, name: str) -> Facts:
    return replace(facts, required=tuple(dict.fromkeys((*facts.required, name))))


def _declared(facts: Facts) -> set[str]:
    return {name for part in facts.objects for name in part.properties} - facts.forbidden


def schemas_of(facts: Facts, name: str) -> Iterator[str]:
    """The schemas that the value of property `name` must satisfy."""
    for part in facts.objects:
        found = [part.properties[name]] if name in part.properties else []
        found += [schema for text, schema in part.patterns.items() if matches(text, name)]
        yield from found or ([] if part.others is None else [part.others])

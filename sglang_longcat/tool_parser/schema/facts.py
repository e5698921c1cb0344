"""What one alternative of a schema demands, and the demands of two alternatives together.

Owns: `Facts` and `merge`. A schema is a list of alternatives (`alternatives`); anyOf adds them up,
allOf and keywords beside each other are merged here. So xgrammar, which reads only one of `$ref`,
`anyOf`, `oneOf`, `allOf` and what stands beside them, gets schemas that need no such reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sglang_longcat.tool_parser.schema.document import Conjunction, conjunction

NUMERIC = frozenset(["integer", "number"])
EVERY = NUMERIC | {"null", "boolean", "string", "array", "object"}
_TIGHTER: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}
LIMITS = frozenset(_TIGHTER)


@dataclass(frozen=True)
class ObjectPart:
    """`properties`, `patternProperties` and `additionalProperties` of one schema."""

    properties: Mapping[str, str]  # the values of all mappings are pointers
    patterns: Mapping[str, str]
    others: str | None


@dataclass(frozen=True)
class ArrayPart:
    """`prefixItems` and `items` of one schema."""

    prefix: tuple[str, ...]
    rest: str | None


@dataclass(frozen=True)
class Facts:
    types: frozenset[str] = EVERY
    values: tuple[Any, ...] | None = None  # of enum or const
    sources: Conjunction = ()  # the schemas that a value of `values` must satisfy
    limits: Mapping[str, float] = field(default_factory=dict)
    patterns: Conjunction = ()  # pointers of schemas with `pattern`
    formats: Conjunction = ()
    objects: tuple[ObjectPart, ...] = ()
    required: tuple[str, ...] = ()
    forbidden: frozenset[str] = frozenset()  # names that this alternative leaves to another one
    names: Conjunction = ()  # propertyNames
    arrays: tuple[ArrayPart, ...] = ()
    unenforced: tuple[tuple[str, str], ...] = ()  # (pointer, keyword)


def merge(one: Facts, other: Facts) -> Facts:
    """What a value demands that must satisfy both."""
    joined: dict[str, tuple[Any, ...]] = {
        each.name: getattr(one, each.name) + getattr(other, each.name)
        for each in fields(Facts)
        if isinstance(each.default, tuple)
    }
    together: dict[str, Any] = {
        name: conjunction(both) if _hashable(name) else both for name, both in joined.items()
    }
    return Facts(
        types=one.types & other.types,
        values=one.values if one.values is not None else other.values,
        limits=_limits(one.limits, other.limits),
        forbidden=one.forbidden | other.forbidden,
        **together,
    )


def typed(facts: Facts) -> Facts:
    """`facts` with the types that its keywords are about, if it names none. JSON Schema lets such
    keywords pass every value of another type; whoever writes `properties` means an object."""
    if facts.types != EVERY or facts.values is not None:
        return facts
    kinds = {keyword_type(name) for name in facts.limits}
    kinds |= {"object"} if facts.objects or facts.required or facts.names else set()
    kinds |= {"array"} if facts.arrays else set()
    kinds |= {"string"} if facts.patterns or facts.formats else set()
    types = frozenset(kinds) | (NUMERIC if "number" in kinds else frozenset())
    return replace(facts, types=types) if kinds else facts


def keyword_type(keyword: str) -> str:
    """The type that a limit is about."""
    for ending, kind in (("Length", "string"), ("Items", "array"), ("Properties", "object")):
        if keyword.endswith(ending):
            return kind
    return "number"


def _limits(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    both = {**one, **other}
    for name in one.keys() & other.keys():
        both[name] = _TIGHTER[name](one[name], other[name])
    return both


def _hashable(name: str) -> bool:
    return name not in ("objects", "arrays")

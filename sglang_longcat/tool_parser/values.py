"""Turns the text of one argument into JSON, by the tool's JSON schema.

Owns: which types a schema allows, and the conversion of text to JSON text. A value that is JSON
already stays as the model wrote it, so numbers keep their digits. `parser` decides where a value
starts and ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]
STRING = frozenset(["string"])
_MAX_REFS = 8  # a schema may refer to itself
_BARE_KEY = re.compile(r'"(?:[^"\\]|\\.)*"|([{,]\s*)([A-Za-z_]\w*)(\s*:)', re.DOTALL)


def property_types(tool: Schema, name: str) -> frozenset[str] | None:
    """The JSON types that the tool's schema allows for one argument; None if it does not say."""
    properties = tool.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return _types(tool.get("additionalProperties") if schema is None else schema, tool, _MAX_REFS)


def to_json(text: str, types: frozenset[str] | None) -> str:
    """JSON of an argument: a string if only that fits or `text` is no JSON, otherwise `text`."""
    if types == STRING:
        return quote(text)
    kind = json_type(text)
    if kind is None or (types is not None and kind not in types and "string" in types):
        return quote(text)
    return text.strip()


def quote(text: str) -> str:
    """A JSON string. The strings of two pieces, joined without their inner quotes, are the string
    of the joined text."""
    return json.dumps(text, ensure_ascii=False)


def dump(value: object) -> str:
    """JSON text that can be sent as UTF-8, in which lone surrogates are escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def load(text: str) -> Any:
    """Read strict JSON (no NaN). Raises ValueError, also if it nests too deep to read."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("JSON nests too deep") from None


def json_type(text: str) -> str | None:
    """The JSON schema type of the value that `text` is; None if it is no JSON."""
    try:
        return _type_of(load(text))
    except ValueError:
        return None


def quote_keys(text: str) -> str:
    """`{city: "Tokyo"}` as JSON: quote the keys that are bare, and nothing inside quotes."""
    return _BARE_KEY.sub(
        lambda match: f'{match[1]}"{match[2]}"{match[3]}' if match[2] else match[0], text
    )


def _types(schema: object, tool: Schema, depth: int) -> frozenset[str] | None:
    if not isinstance(schema, Mapping) or depth == 0:
        return None
    if "$ref" in schema:
        return _types(_target(str(schema["$ref"]), tool), tool, depth - 1)
    named = schema.get("type")
    if isinstance(named, str):
        return _widen(frozenset([named]))
    if isinstance(named, list):
        return _widen(frozenset(str(name) for name in named))
    members = schema["enum"] if isinstance(schema.get("enum"), list) else None
    if "const" in schema:
        members = [schema["const"]]
    if members:
        return frozenset(_type_of(member) for member in members)
    return _union(schema.get("anyOf") or schema.get("oneOf"), tool, depth - 1)


def _union(variants: object, tool: Schema, depth: int) -> frozenset[str] | None:
    if not isinstance(variants, list):
        return None
    allowed: frozenset[str] = frozenset()
    for variant in variants:
        types = _types(variant, tool, depth)
        if types is None:
            return None
        allowed |= types
    return allowed


def _widen(types: frozenset[str]) -> frozenset[str]:
    """An integer is a number too."""
    return types | {"integer"} if "number" in types else types


def _target(reference: str, tool: Schema) -> object:
    """The schema that `reference` names inside `tool`; None if it is not there."""
    schema: object = tool if reference.startswith("#/") else None
    for step in reference.removeprefix("#/").split("/"):
        schema = schema.get(step) if isinstance(schema, Mapping) else None
    return schema


def _type_of(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")

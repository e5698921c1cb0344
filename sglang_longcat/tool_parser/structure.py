"""The grammar that forces the model to write a valid call.

Owns: the structural tag (xgrammar's format) for tool_choice "required", for a named tool, and for
strict tools. Calls have the model's own form, one pair per argument in the order of the schema.
Strings are written without quotes and may contain anything except the tags; other values are JSON
of their own schema. SGLang compiles and applies the tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xgrammar import StructuralTag

from sglang_longcat.tool_parser import values
from sglang_longcat.tool_parser.scan import CALL, END_CALL, END_KEY, END_VALUE, KEY, VALUE

_Format = dict[str, Any]
_FREE = {"type": "any_text", "excludes": [CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE]}


def structural_tag(
    tools: Mapping[str, values.Schema], *, at_least_one: bool, parallel: bool
) -> StructuralTag:
    """One or more calls of `tools` and nothing else. Without `at_least_one`: text that may contain
    calls."""
    tags = [_call(name, schema) for name, schema in tools.items()]
    limits = {"tags": tags, "at_least_one": at_least_one, "stop_after_first": not parallel}
    if at_least_one:
        layout = {"type": "tags_with_separator", "separator": "\n", **limits}
    else:
        layout = {"type": "triggered_tags", "triggers": [CALL], **limits}
    return StructuralTag.model_validate({"type": "structural_tag", "format": layout})


def _call(name: str, schema: values.Schema) -> _Format:
    properties = schema.get("properties")
    required = schema.get("required") or []
    pairs = [
        pair if key in required else {"type": "optional", "content": pair}
        for key in (properties if isinstance(properties, Mapping) else {})
        for pair in [_pair(key, schema)]
    ]
    content = {"type": "sequence", "elements": [{"type": "const_string", "value": "\n"}, *pairs]}
    return {"type": "tag", "begin": CALL + name, "content": content, "end": END_CALL}


def _pair(key: str, schema: values.Schema) -> _Format:
    begin = f"{KEY}{key}{END_KEY}\n{VALUE}"
    return {
        "type": "tag",
        "begin": begin,
        "content": _value(key, schema),
        "end": f"{END_VALUE}\n",
    }


def _value(key: str, schema: values.Schema) -> _Format:
    own = schema["properties"][key]
    if values.property_types(schema, key) == values.STRING:
        names = own.get("enum") if isinstance(own, Mapping) else None
        if not names:
            return _FREE
        return {"type": "or", "elements": [{"type": "const_string", "value": n} for n in names]}
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    wanted = {**own, **definitions} if isinstance(own, Mapping) else own
    return {"type": "json_schema", "json_schema": wanted}

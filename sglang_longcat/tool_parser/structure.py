"""The grammar that forces the model to write a valid call.

Owns: the structural tag (xgrammar's format) for tool_choice "required", for a named tool, and for
strict tools. Where `pairs_grammar` can, a call has the model's own form: one pair per argument, in
the order of the schema. Otherwise its arguments are one JSON object behind the name, which `parser`
reads too. SGLang compiles and applies the tag.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from xgrammar import Grammar, StructuralTag

from sglang_longcat.tool_parser import values
from sglang_longcat.tool_parser.head import NAME
from sglang_longcat.tool_parser.pairs_grammar import PairsGrammar
from sglang_longcat.tool_parser.scan import CALL, END_CALL
from sglang_longcat.tool_parser.schema.document import NOTHING
from sglang_longcat.tool_parser.schema.facts import Facts, ObjectPart, merge
from sglang_longcat.tool_parser.schema.refusal import SchemaRefused
from sglang_longcat.tool_parser.schema.writer import Writer

_Format = dict[str, Any]
_OBJECT = Facts(types=frozenset(["object"]))
_NO_ARGUMENT = Facts(objects=(ObjectPart({}, {}, NOTHING),))
_ADVICE = 'Leave it out, or set tool_choice to "auto" and strict to false.'


class ToolRefused(ValueError):
    """A tool that cannot be forced. The client gets it as HTTP 400."""


def structural_tag(
    tools: Mapping[str, values.Schema],
    *,
    at_least_one: bool,
    parallel: bool,
    lenient: Collection[str] = (),
) -> StructuralTag:
    """One or more calls of `tools` and nothing else. Without `at_least_one`: text that may contain
    calls. A `lenient` tool gets any JSON object where its schema is refused. Raises ToolRefused."""
    tags = [_tool(name, schema, lenient=name in lenient) for name, schema in tools.items()]
    limits = {"tags": tags, "at_least_one": at_least_one, "stop_after_first": not parallel}
    if at_least_one:
        layout = {"type": "tags_with_separator", "separator": "\n", **limits}
    else:
        layout = {"type": "triggered_tags", "triggers": [CALL], **limits}
    return StructuralTag.model_validate({"type": "structural_tag", "format": layout})


def check_names(names: Collection[str]) -> None:
    """Raise ToolRefused for a name that a call cannot carry, or that two tools have."""
    for name, count in Counter(names).items():
        if not re.fullmatch(NAME, name):
            raise ToolRefused(
                f"The tool name {name!r} cannot be called: expected one or more characters, none "
                "of them a space, a line break, or one of <>(){}. Rename the tool."
            )
        if count > 1:
            raise ToolRefused(f"{count} tools have the name {name!r}; give each its own name.")


def _tool(name: str, schema: Any, *, lenient: bool) -> _Format:
    check_names([name])
    try:
        content = _arguments(schema)
    except SchemaRefused as error:
        if not lenient:
            raise ToolRefused(f"Tool {name!r}: {error}. {_ADVICE}") from error
        content = _json({"type": "object"})
    return {"type": "tag", "begin": f"{CALL}{name}\n", "content": content, "end": END_CALL}


def _arguments(schema: Any) -> _Format:
    """Every alternative of the arguments, each in the form that can write it."""
    writer = Writer(schema)
    found = [merge(_OBJECT, facts) for facts in writer.reader.of(("",))]
    found = [facts for facts in found if facts.types]
    pairs = PairsGrammar(schema, writer)
    contents = []
    for facts in found:
        written = writer.one(_object(facts))
        resolved = writer.resolved(written)
        if resolved is not False:
            contents.append(pairs.write(resolved, facts) or _json(resolved))
    if not contents:
        reason = "no object satisfies it, or it refers to itself without end"
        raise SchemaRefused("", "parameters", reason)
    return contents[0] if len(contents) == 1 else {"type": "or", "elements": contents}


def _object(facts: Facts) -> Facts:
    """The objects among the values. A tool whose schema names no property takes no argument."""
    if facts.values is None:
        says = facts.objects or facts.required or facts.names or "minProperties" in facts.limits
        return facts if says else merge(facts, _NO_ARGUMENT)
    return Facts(values=tuple(value for value in facts.values if isinstance(value, dict)))


def _json(schema: Any) -> _Format:
    content = {"type": "json_schema", "json_schema": schema}
    _compile(content)
    return {"type": "sequence", "elements": [content, {"type": "const_string", "value": "\n"}]}


def _compile(content: _Format) -> None:
    """Refuse now what xgrammar would refuse in the scheduler."""
    tag = StructuralTag.model_validate({"type": "structural_tag", "format": content})
    try:
        Grammar.from_structural_tag(tag)
    except RuntimeError as error:
        raise SchemaRefused("", "parameters", str(error).rpartition(": ")[2].strip()) from None

"""Answer a JSON schema that no finite value satisfies with HTTP 400, for `response_format` too.

Why: a required property that refers to its own schema opens objects until the answer is cut off.
Upstream: constrained/xgrammar_backend.py, validate_xgrammar_json_schema, which looks for keywords
that xgrammar ignores and not for recursion.
Remove when: that function refuses recursion without end.
"""

from __future__ import annotations

from sglang_longcat.tool_parser.schema.refusal import SchemaRefused
from sglang_longcat.tool_parser.schema.writer import Writer

TARGET = "sglang.srt.constrained.xgrammar_backend.validate_xgrammar_json_schema"


def apply(result: None, schema: object, *_: object) -> None:
    from sglang.srt.constrained.json_schema_validation import UnsupportedJSONSchemaFeature

    if not _can_end(schema):
        raise UnsupportedJSONSchemaFeature(
            "No value satisfies the JSON schema, or it refers to itself without end. Make one "
            "property of the cycle optional, or let it be null."
        )


def _can_end(schema: object) -> bool:
    try:
        writer = Writer(schema)
        return writer.resolved(writer.refer(("",))) is not False
    except SchemaRefused:  # a keyword that we do not know to enforce: SGLang decides
        return True

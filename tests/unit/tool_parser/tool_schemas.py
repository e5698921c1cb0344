"""Parameters of tools as clients write them: what a forced call must obey, or why it is refused.

Owns: the data of test_tool_schemas and of tests/serving/test_tool_schemas. The groups are named
after the programs that write such schemas.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def args(*optional: str, **properties: Any) -> Schema:
    """An object; every property is required but those in `optional`."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def text(**limits: Any) -> Schema:
    return {"type": "string", **limits}


def closed(schema: Schema, **more: Any) -> Schema:
    return {**schema, "additionalProperties": False, **more}


def one(kind: str, **properties: Any) -> Schema:
    return args(kind={"const": kind}, **properties)


INT, BOOL, NULL = (
    {"type": "integer", "minimum": -99, "maximum": 99},
    {"type": "boolean"},
    {"type": "null"},
)
SIDE = {"$defs": {"K": text(enum=["left", "right"])}}
TREE = args(
    "children",
    name=text(maxLength=3),
    children={"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
)
LIST = args("next", value=INT, next={"anyOf": [{"$ref": "#/$defs/Node"}, NULL]})

ISSUE: dict[str, Schema] = {
    "root oneOf": {
        "type": "object",
        "oneOf": [{"properties": {"kind": {"const": "acme"}}, "required": ["kind"]}],
    },
    "root anyOf beside properties": {**args(a=INT), "anyOf": [args(b=BOOL), args(c={"const": 1})]},
    "root allOf": {"allOf": [args(a=BOOL), args(b={"const": "x"})]},
    "root $ref": {"$ref": "#/$defs/In", "$defs": {"In": args(a=BOOL)}},
    "root patternProperties": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{2}$": INT},
        "additionalProperties": False,
        "minProperties": 1,
    },
    "root additionalProperties": {
        "type": "object",
        "additionalProperties": BOOL,
        "minProperties": 1,
    },
    "property is a $ref to an enum": {**args(side={"$ref": "#/$defs/K"}), **SIDE},
    "pattern": args(code=text(pattern="^[A-Z]{3}$")),
    "const": args(unit={"const": "km"}, version={"const": 2}),
    "maxLength": args(word=text(maxLength=4)),
    "format": args(day=text(format="date")),
    "array of enums": args(
        days={"type": "array", "items": text(enum=["mo", "tu"]), "minItems": 1, "maxItems": 3}
    ),
}
OPENAI: dict[str, Schema] = {
    "weather": args("unit", city=text(maxLength=9), unit=text(enum=["celsius", "fahrenheit"])),
    "strict with a nullable": closed(
        args(q=text(maxLength=5), page={"type": ["integer", "null"], "minimum": 0, "maximum": 9})
    ),
    "strict with nested objects": closed(
        args(to=closed(args(lat={"type": "number", "minimum": -90, "maximum": 90}, on=BOOL)))
    ),
    "strict math steps": closed(
        args(
            steps={
                "type": "array",
                "minItems": 1,
                "maxItems": 2,
                "items": closed(args(text=text(maxLength=4))),
            },
            done=BOOL,
        )
    ),
    "strict anyOf of objects": closed(
        args(item={"anyOf": [closed(args(name=text(maxLength=3))), closed(args(number=INT))]})
    ),
    "strict recursive ui": {
        **closed(
            args(
                type=text(enum=["div", "form"]),
                label=text(maxLength=2),
                children={"type": "array", "maxItems": 1, "items": {"$ref": "#"}},
            )
        ),
    },
    "strict linked list": {
        **closed(args(head={"$ref": "#/$defs/Node"})),
        "$defs": {"Node": closed(LIST)},
    },
    "nullable enum": args(level={"type": ["string", "null"], "enum": ["low", "high", None]}),
    "enum of numbers": args(size={"type": "integer", "enum": [1, 2, 4]}),
    "no parameters": {"type": "object", "properties": {}},
    "no properties key": {"type": "object"},
    "empty schema": {},
}
PYDANTIC: dict[str, Schema] = {
    "enum with title and default": {
        **args("side", side={"$ref": "#/$defs/K", "default": "left", "description": "which"}),
        **SIDE,
        "title": "Args",
    },
    "v1 allOf around a $ref": {
        **args(side={"title": "Side", "allOf": [{"$ref": "#/definitions/K"}]}),
        "definitions": SIDE["$defs"],
    },
    "Optional[str]": args(
        name={"anyOf": [text(maxLength=5), NULL], "default": None, "title": "Name"}
    ),
    "Optional[Literal]": args(mode={"anyOf": [text(enum=["r", "w"]), NULL]}),
    "str or int": args(id={"anyOf": [text(maxLength=4), INT]}),
    "constrained str": args(slug=text(minLength=2, maxLength=6, pattern="^[a-z-]+$")),
    "length alone": args(word=text(minLength=2, maxLength=4)),
    "conint and confloat": args(
        n={"type": "integer", "exclusiveMinimum": 0, "maximum": 9},
        p={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    ),
    "datetime, date, time": args(
        a=text(format="date-time"), b=text(format="date"), c=text(format="time")
    ),
    "UUID": args(id=text(format="uuid")),
    "timedelta": args(wait=text(format="duration")),
    "IPv4Address": args(ip=text(format="ipv4")),
    "AnyUrl": args(url=text(format="uri", minLength=1, maxLength=80)),
    "EmailStr": args(to=text(format="email", maxLength=60)),
    "dict[str, int]": args(
        counts={"type": "object", "additionalProperties": INT, "maxProperties": 2}
    ),
    "dict[Literal, bool]": args(
        flags={
            "type": "object",
            "additionalProperties": BOOL,
            "propertyNames": {"enum": ["a", "b"]},
        }
    ),
    "dict with patterns": args(
        labels={
            "type": "object",
            "patternProperties": {"^[a-z]{2}$": text(maxLength=2)},
            "maxProperties": 2,
        }
    ),
    "dict[constr, int]": args(
        d={
            "type": "object",
            "propertyNames": text(minLength=1, maxLength=3),
            "additionalProperties": INT,
            "maxProperties": 2,
        }
    ),
    "tuple": args(
        pair={
            "type": "array",
            "prefixItems": [INT, text(maxLength=2)],
            "minItems": 2,
            "maxItems": 2,
        }
    ),
    "extra forbid": closed(args("b", a=BOOL, b=INT)),
    "extra allow": {**args(a=BOOL), "additionalProperties": True, "maxProperties": 2},
    "discriminated union": {
        **args(
            pet={
                "discriminator": {
                    "propertyName": "kind",
                    "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"},
                },
                "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
            }
        ),
        "$defs": {"Cat": one("cat", lives=INT), "Dog": one("dog", loud=BOOL)},
    },
    "discriminated union with defaults": {
        **args(shape={"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}),
        "$defs": {
            "A": args("kind", kind={"const": "a", "default": "a"}, r=INT),
            "B": args("kind", kind={"const": "b", "default": "b"}, r=INT),
        },
    },
    "recursive model": {
        **args(tree={"$ref": "#/$defs/T"}),
        "$defs": {"T": args("left", value=BOOL, left={"anyOf": [{"$ref": "#/$defs/T"}, NULL]})},
    },
    "root $ref of a recursive model": {"$ref": "#/$defs/Node", "$defs": {"Node": LIST}},
    "list of models": {
        **args(items={"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/M"}}),
        "$defs": {"M": args(side={"$ref": "#/$defs/K"}), **SIDE["$defs"]},
    },
    "model beside siblings": {
        **args(m={"$ref": "#/$defs/M", "description": "d", "required": ["b"]}),
        "$defs": {"M": args("b", a=BOOL, b=INT)},
    },
    "Json and bytes": args(
        raw=text(format="binary", maxLength=3),
        blob=text(contentMediaType="application/json", contentSchema={}, maxLength=3),
    ),
    "deprecated and read-only": args(
        old={**INT, "deprecated": True, "readOnly": True, "examples": [1]}
    ),
}
ZOD: dict[str, Schema] = {
    "draft-07 with $schema": closed(
        args(n=INT), **{"$schema": "http://json-schema.org/draft-07/schema#"}
    ),
    "intersection": {"allOf": [args(a=BOOL), args(b=INT)], "unevaluatedProperties": False},
    "record": args(
        r={
            "type": "object",
            "additionalProperties": {"type": "array", "items": BOOL, "maxItems": 2},
            "maxProperties": 2,
        }
    ),
    "record with enum keys": args(
        r=closed({"type": "object", "propertyNames": text(enum=["x", "y"])})
        | {"additionalProperties": INT}
    ),
    "regex, not anchored": args(s=text(pattern="\\d", maxLength=5)),
    "startsWith": args(s=text(pattern="^ab", maxLength=6)),
    "trimmed and non-empty": args(s=text(pattern="^\\S+$", minLength=1, maxLength=6)),
    "cuid": args(id=text(pattern="^[cC][^\\s-]{8}$")),
    "semver": args(v=text(pattern="^(0|[1-9]\\d*)\\.(0|[1-9]\\d*)\\.(0|[1-9]\\d*)$", maxLength=12)),
    "named groups": args(d=text(pattern="^(?P<y>[0-9]{4})-(?P<m>0[1-9]|1[0-2])$")),
    "positive int": args(n={"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991}),
    "safe int": args(
        n={"type": "integer", "minimum": -9007199254740991, "maximum": 9007199254740991}
    ),
    "native enum of mixed values": args(v={"type": ["string", "number"], "enum": ["a", 1, 2.5]}),
    "union of literals": args(v={"anyOf": [{"const": "auto"}, {"const": 0}, {"const": None}]}),
    "union with an array": args(
        v={
            "anyOf": [
                text(maxLength=3),
                {"type": "array", "items": text(maxLength=2), "maxItems": 2},
            ]
        }
    ),
    "discriminatedUnion at the root": {
        "oneOf": [closed(one("get", id=INT)), closed(one("put", id=INT, on=BOOL))]
    },
    "union of strict objects": {
        "anyOf": [
            closed(args(path=text(maxLength=4))),
            closed(args(url=text(maxLength=4), tries=INT)),
        ]
    },
    "refs into properties": args(a=args(x=INT), b={"$ref": "#/properties/a"}),
    "tuple with rest": args(
        t={"type": "array", "prefixItems": [BOOL], "items": INT, "minItems": 1, "maxItems": 3}
    ),
    "lazy": {
        **args(c={"$ref": "#/$defs/C"}),
        "$defs": {
            "C": args(
                "sub", n=INT, sub={"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/C"}}
            )
        },
    },
    "optional everything": args("a", "b", a=INT, b=text(enum=["q"])),
}
MCP: dict[str, Schema] = {
    "either a or b": {
        **args("a", "b", a=INT, b=BOOL),
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "file edits": args(
        "dryRun",
        path=text(maxLength=5),
        edits={
            "type": "array",
            "minItems": 1,
            "maxItems": 2,
            "items": args(oldText=text(maxLength=3), newText=text(maxLength=3)),
        },
        dryRun={**BOOL, "default": False},
    ),
    "free object": args(body={"type": "object", "maxProperties": 1, "additionalProperties": BOOL}),
    "keys that a tag cannot carry": args(
        **{" padded ": INT, "<b>": BOOL, "": {"const": 1}, "a\nb": BOOL, 'q"': INT}
    ),
    "keys beyond ASCII": args(**{"größe": INT, "日": BOOL, "a-b.c/d": INT, "with space": BOOL}),
    "enum with tags and spaces": args(v=text(enum=["<b>", " a ", "", "null", "12", "a\nb"])),
    "enum that looks like JSON": args(v=text(enum=["null", "12", '"x"', "{}", " a "])),
    "string or null that looks like it": args(
        v={"type": ["string", "null"], "enum": ["null", None, "1"]}
    ),
    "values of every type": args(v={"enum": ["a", 1, None, True, {"b": [2]}, [3]]}),
    "required but not declared": {
        "type": "object",
        "required": ["a"],
        "additionalProperties": BOOL,
    },
    "conditions on an enum": args(
        n={"enum": [1, 2, 3, 4, 6], "multipleOf": 2, "not": {"const": 4}}
    ),
    "minProperties": {**args("a", "b", "c", a=INT, b=INT, c=INT), "minProperties": 2},
    "false property": args("never", a=INT, never=False),
    "branch that cannot be": args(v={"anyOf": [INT, False, {"type": "integer", "enum": ["no"]}]}),
    "nested allOf and anyOf": args(
        v={"allOf": [{"anyOf": [INT, text()]}, {"anyOf": [text(maxLength=3), BOOL]}]}
    ),
    "recursion through anyOf": {
        "$ref": "#/$defs/E",
        "$defs": {"E": {"anyOf": [args(leaf=BOOL), args(not_={"$ref": "#/$defs/E"})]}},
    },
    "two tuples": args(
        v={
            "allOf": [
                {"type": "array", "prefixItems": [INT, BOOL]},
                {"items": INT, "maxItems": 1, "minItems": 1},
            ]
        }
    ),
    "tree": TREE,
    "only the empty string": args(a=text(maxLength=0), b={"type": "array", "maxItems": 0}),
    "parts that close each other": {
        "allOf": [closed(args("a", a=INT)), {"properties": {"b": INT}}, {"minProperties": 1}]
    },
    "one of three": {**args("a", "b", a=INT, b=INT), "oneOf": [{"required": [n]} for n in "ab"]},
    "patterns of names that overlap": {
        "type": "object",
        "patternProperties": {"^a[a-z]?$": INT, "z$": {"maximum": 5}},
        "minProperties": 1,
        "maxProperties": 2,
    },
    "properties named like keywords": args(**{"$ref": INT, "type": BOOL, "enum": INT}),
    "filters": args(
        where={
            "type": "array",
            "maxItems": 2,
            "items": {
                "oneOf": [
                    one("eq", value=INT),
                    one("in", values={"type": "array", "items": INT, "maxItems": 2}),
                ]
            },
        }
    ),
    "ipv6 and uri-reference": args(a=text(format="ipv6"), b=text(format="uri-reference")),
}
OBEYED = {**ISSUE, **OPENAI, **PYDANTIC, **ZOD, **MCP}

# name: (schema, keyword and pointer that the answer names)
REFUSED: dict[str, tuple[Schema, str]] = {
    "not": (args(a={**INT, "not": {"const": 3}}), "'not' at '#/properties/a'"),
    "if": ({**args(a=INT), "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "'if' at '#'"),
    "uniqueItems": (
        args(a={"type": "array", "items": INT, "uniqueItems": True}),
        "'uniqueItems' at '#/properties/a'",
    ),
    "contains": (args(a={"type": "array", "contains": INT}), "'contains' at '#/properties/a'"),
    "multipleOf": (
        args(a={"type": "number", "multipleOf": 0.01}),
        "'multipleOf' at '#/properties/a'",
    ),
    "dependentRequired": (
        {**args("b", a=INT, b=INT), "dependentRequired": {"a": ["b"]}},
        "'dependentRequired' at '#'",
    ),
    "in a definition": (
        {
            **args(a={"$ref": "#/$defs/a~1b"}),
            "$defs": {"a/b": {"type": "array", "uniqueItems": True}},
        },
        "'uniqueItems' at '#/$defs/a~1b'",
    ),
    "oneOf that overlaps": (
        args(a={"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        "'oneOf' at '#/properties/a'",
    ),
    "lookahead": (args(a=text(pattern="^(?!x)[a-z]+$")), "'pattern' at '#/properties/a'"),
    "backreference": (args(a=text(pattern="^(a|b)\\1$")), "'pattern' at '#/properties/a'"),
    "pattern that is none": (args(a=text(pattern="([")), "'pattern' at '#/properties/a'"),
    "two patterns": (
        args(a={"allOf": [text(pattern="^a"), text(pattern="b$")]}),
        "'pattern' at '#/properties/a/allOf/1'",
    ),
    "$ref to nothing": (args(a={"$ref": "#/$defs/missing"}), "'$ref' at '#/properties/a'"),
    "$ref to the network": (
        args(a={"$ref": "https://example.com/s.json"}),
        "'$ref' at '#/properties/a'",
    ),
    "recursion without end": (args(a={"$ref": "#"}), "refers to itself without end"),
    "$ref in a circle": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "refers to itself without end",
    ),
    "no object": ({"type": "string"}, "no object satisfies it"),
    "no value": (args(a={"type": "integer", "minimum": 3, "maximum": 2}), "no object satisfies it"),
    "bound beyond 64 bits": (
        args(a={"type": "integer", "minimum": 2**70}),
        "'minimum' at '#/properties/a'",
    ),
    "format that breaks JSON": (
        args(a=text(format="json-pointer")),
        "'format' at '#/properties/a'",
    ),
}

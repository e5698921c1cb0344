"""Forced calls through the real server: the arguments obey the schema, or the answer is 400.

One server of random weights at a high temperature, so that the grammar alone decides. The schemas
and the sampling of their grammars, many times each, are in tests/unit/tool_parser.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from jsonschema import Draft202012Validator

from tests import harness
from tests.serving import http
from tests.unit.tool_parser import tool_schemas

CHAT, GENERATE = "/v1/chat/completions", "/generate"
USER = [{"role": "user", "content": "hi"}]
REQUIRED = "required"


@pytest.fixture(scope="module")
def server(checkpoint):
    options = {"tool_call_parser": "longcat", "sampling_defaults": "openai"}
    with harness.server(checkpoint, **options) as running:
        yield running


@pytest.fixture(scope="module")
def closers(tokenizer):
    """A bias for what ends values, by which random answers end."""
    ends = ("</longcat_arg_value>", "</longcat_tool_call>", '"', "}", "]", '"}', '"]')
    ids = {tokenizer.convert_tokens_to_ids(end) for end in ends} - {tokenizer.unk_token_id, None}
    return {str(token): 6 for token in ids}


def post(server, path, body):
    """Status and decoded body of the answer."""
    status, text = http.post(server, path, {"model": "any", **body}, timeout=120)
    return status, json.loads(text)


def tool(schema, name="tool", **more):
    return {"type": "function", "function": {"name": name, "parameters": schema, **more}}


def force(server, schema, **asked):
    body = {"messages": USER, "tools": [tool(schema)], "tool_choice": REQUIRED, "temperature": 3}
    body |= {"parallel_tool_calls": False, "max_tokens": 100}
    return post(server, CHAT, {**body, **asked})


def test_schemas_of_the_corpus(server, closers):
    """Turns red if the grammar does not reach the sampler, or SGLang changes a schema or a call."""
    # Every fourth: the grammars of all are sampled without a server, in a tenth of the time.
    schemas = dict(list(tool_schemas.OBEYED.items())[::4])
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(force, server, each, logit_bias=closers) for each in schemas.values()]
        answers = {name: future.result() for name, future in zip(schemas, asked, strict=True)}
    ended = 0
    for name, (status, answer) in answers.items():
        assert status == 200, (name, answer)
        [choice] = answer["choices"]
        assert not choice["message"]["content"], (name, choice)
        if choice["finish_reason"] == "tool_calls":
            ended += 1
            [call] = choice["message"]["tool_calls"]
            found = json.loads(call["function"]["arguments"])
            Draft202012Validator(tool_schemas.OBEYED[name]).validate(found)
    assert ended >= 5, "the random answers do not end"


EXACT = {
    "root oneOf": {"kind": "acme"},
    "const": {"unit": "km", "version": 2},
}


@pytest.mark.parametrize("name", EXACT)
def test_the_only_value(server, name):
    # Random tokens are short: the longest of the calls has 170 characters.
    _, answer = force(server, tool_schemas.OBEYED[name], max_tokens=400)
    [call] = answer["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == EXACT[name]


def test_refused_before_generation(server):
    for name, (schema, reason) in tool_schemas.REFUSED.items():
        for choice in (REQUIRED, {"type": "function", "function": {"name": "tool"}}):
            status, answer = force(server, schema, tool_choice=choice)
            assert status == 400, (name, answer)
            assert reason.partition("'")[0] in answer["message"], (name, answer)
            assert "tool" in answer["message"].lower()


def test_refused_for_a_stream_too(server):
    schema, reason = tool_schemas.REFUSED["uniqueItems"]
    status, answer = force(server, schema, stream=True)
    assert (status, reason in answer["message"]) == (400, True)


@pytest.mark.parametrize("name", ["two\nlines", "<b>", "", " padded ", "f(x)", "{"])
def test_a_name_that_no_call_can_carry(server, name):
    status, answer = force(server, {"type": "object"}, tools=[tool({"type": "object"}, name)])
    assert status == 400
    assert "cannot be called" in answer["message"]


def test_two_tools_of_one_name(server):
    status, answer = force(server, {}, tools=[tool(tool_schemas.TREE), tool({})])
    assert (status, "2 tools have the name" in answer["message"]) == (400, True)


def test_only_a_strict_tool_is_refused_in_auto(server):
    """A schema that cannot be enforced is no promise of a tool that is not strict."""
    schema, reason = tool_schemas.REFUSED["multipleOf"]
    for strict, wanted in ((False, 200), (True, 400)):
        tools = [tool(schema, strict=strict), tool({"type": "object"}, "other", strict=True)]
        status, answer = force(server, schema, tools=tools, tool_choice="auto", max_tokens=4)
        assert status == wanted, answer
    assert reason in answer["message"]


ENDLESS = {
    "itself": {"$ref": "#"},
    "a circle": tool_schemas.REFUSED["$ref in a circle"][0],
    "a property": tool_schemas.REFUSED["recursion without end"][0],
}


@pytest.mark.parametrize("schema", ENDLESS.values(), ids=ENDLESS)
def test_response_format_without_end(server, schema):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, answer = post(server, CHAT, {"messages": USER, "response_format": wanted})
    assert status == 400, answer
    assert "without end" in answer["message"]


TAG = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": {"$ref": "#"}}}
BAD_GRAMMARS = {
    "schema, broken": {"json_schema": "{"},
    "schema, a list": {"json_schema": "[1]"},
    "schema, wrong type": {"json_schema": '{"type": 5}'},
    "schema, deep": {"json_schema": '{"items":' * 3000 + "{}" + "}" * 3000},
    "schema, itself": {"json_schema": '{"$ref": "#"}'},
    "regex, broken": {"regex": "(["},
    "regex, crossed bounds": {"regex": "a{5,2}"},
    "ebnf, broken": {"ebnf": "root ::="},
    "ebnf, undefined": {"ebnf": "root ::= other"},
    "ebnf, itself": {"ebnf": "root ::= root"},
    "ebnf, a circle": {"ebnf": "root ::= a\na ::= root"},
    "tag, broken": {"structural_tag": "{"},
    "tag, a list": {"structural_tag": "[]"},
    "tag, unknown": {"structural_tag": '{"type": "structural_tag", "format": {"type": "nope"}}'},
    "tag, itself": {"structural_tag": json.dumps(TAG)},
    "tag, old and wrong": {"structural_tag": '{"structures": 5, "triggers": 5}'},
}


def test_no_grammar_is_an_internal_error(server):
    """Each of these was 500, or is one change of SGLang away from it; the server goes on."""
    for name, grammar in BAD_GRAMMARS.items():
        params = {"max_new_tokens": 4, **grammar}
        status, answer = post(server, GENERATE, {"text": "hi", "sampling_params": params})
        assert status == 400, (name, answer)
    status, _ = post(server, GENERATE, {"text": "hi", "sampling_params": {"max_new_tokens": 2}})
    assert status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_cut_off_leaves_no_markup(server, stream):
    """Wherever it is cut: behind its tag, in the name, a key, a value, or a JSON body."""
    schemas = ("weather", "keys that a tag cannot carry")
    for schema, limit in ((s, n) for s in schemas for n in (1, 2, 3, 5, 9, 14)):
        asked = {"max_tokens": limit, "stream": stream}
        content = content_of(server, tool_schemas.OBEYED[schema], asked)
        assert "<longcat_" not in content, (schema, limit, content)


def content_of(server, schema, asked):
    if not asked["stream"]:
        status, answer = force(server, schema, **asked)
        assert status == 200, answer
        assert answer["choices"][0]["finish_reason"] == "length"
        return answer["choices"][0]["message"]["content"] or ""
    body = {"messages": USER, "tools": [tool(schema)], "tool_choice": REQUIRED, "model": "any"}
    status, text = http.post(server, CHAT, {**body, **asked})
    assert status == 200, text
    lines = [line[6:] for line in text.splitlines() if line[:6] == "data: "]
    deltas = [c["delta"] for line in lines[:-1] for c in json.loads(line)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)

"""Streamed and whole parsing of tool calls agree on every answer, however it is split."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_longcat import parse_model_response, tool_parser
from sglang_longcat.testing.tokenizer import build_vocabulary, write_tokenizer
from sglang_longcat.tool_parser import scan
from sglang_longcat.tool_parser.events import Arguments, Call, Text
from sglang_longcat.tool_parser.parser import CallParser
from tests import ROOT
from tests.unit.tool_parser import tool_transcripts as transcripts

SCHEMAS = {
    tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in transcripts.TOOLS
}
cases = pytest.mark.parametrize(
    ("text", "content", "calls"),
    [pytest.param(*case, id=name) for name, *case in transcripts.ALL],
)


def joined(events):
    """(content, [(name, arguments)]) of a stream of events, in which a call's name comes first."""
    content, calls = "", []
    for event in events:
        match event:
            case Text(text=text):
                content += text
            case Call(index=index, name=name):
                assert index == len(calls)
                calls.append((name, ""))
            case Arguments(index=index, json=text):
                assert index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + text)
    return content, calls


def stream(pieces, tools=SCHEMAS):
    parser = CallParser(tools)
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


@cases
def test_whole(text, content, calls):
    assert joined(stream([text])) == (content, calls)


@cases
def test_character_by_character(text, content, calls):
    assert joined(stream(text)) == (content, calls)


@cases
def test_every_split_in_two(text, content, calls):
    if len(text) < 1000:
        for cut in range(len(text)):
            assert joined(stream([text[:cut], text[cut:]])) == (content, calls), text[:cut]


PIECES = [
    *("<longcat_tool_call>", "</longcat_tool_call>", "<longcat_arg_key>", "</longcat_arg_key>"),
    *("<longcat_arg_value>", "</longcat_arg_value>", "now", "write", "functions.", "path", "any"),
    *("{", "}", '"', ":", ",", "(", ")", "[", "\\", "<", "\n", " ", '{"name": "now", ', "é", "12"),
    *('"arguments": {', "<longcat_", transcripts.pair("path", "a"), transcripts.call("now")),
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=24).map("".join), st.data())
def test_any_answer_at_any_boundary(text, data):
    """Also for answers that no model should write: no exception, and the same calls for any
    split."""
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    whole = joined(stream([text]))
    assert joined(stream(pieces)) == whole
    assert joined(stream(text)) == whole
    if "<longcat_tool_call>" not in text:
        cut = scan.partial_tag(text, scan.CALL)
        assert whole == (text[:-cut] if cut >= len("<longcat_") else text, [])


@settings(max_examples=300, deadline=None)
@given(st.text(), st.text(), st.lists(st.integers()))
def test_template_round_trip(path, content, numbers):
    """For any values, except those with a closing tag behind which the grammar continues."""
    values = {"path": path, "content": content, "any": numbers}
    texts = (path, content, json.dumps(numbers))
    text = transcripts.call("write", *zip(values, texts))
    _, [(name, arguments)] = joined(stream(text))
    assert (name, json.loads(arguments)) == ("write", values)


def test_grows_as_it_is_written():
    """The name comes before any argument, a string as it arrives, and text up to a possible tag."""
    parser = CallParser(SCHEMAS)
    for fed, shown in (
        ("Hi <", [Text("Hi ")]),
        ("longcat_tool_call>wri", []),
        ("te\n<longcat_arg_key>path</longcat_arg_key>\n", []),
        ("<longcat_arg_value>", [Call(0, "write"), Arguments(0, "{"), Arguments(0, '"path": "')]),
        ("/tmp", [Arguments(0, "/tmp")]),
        ("/a</longcat_arg", [Arguments(0, "/a")]),
        ("_value>\n", []),
        ("</longcat_tool_call>", [Arguments(0, '"'), Arguments(0, "}")]),
        ("\n", []),
        ("bye", [Text("bye")]),
    ):
        assert parser.feed(fed) == shown, fed


def test_json_body_grows_as_it_is_written():
    parser = CallParser(SCHEMAS)
    assert parser.feed('<longcat_tool_call>{"name": "write", "arguments": {') == []
    assert parser.feed('"pa') == [Call(0, "write"), Arguments(0, '{"pa')]
    assert parser.feed('th": "x') == [Arguments(0, 'th": "x')]


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": None},
        {"properties": {"path": True}},
        {"properties": {"path": {"$ref": "#"}}},
        {"properties": {"path": {"$ref": "other.json"}}},
        {"properties": {"path": {"anyOf": [{}, {"type": "string"}]}}},
        {"additionalProperties": False},
    ],
)
def test_schema_that_says_nothing(schema):
    """A value that is JSON is read as JSON, and there is no KeyError."""
    for value, wanted in (("7", 7), ("seven", "seven")):
        text = transcripts.call("f", ("path", value))
        [(_, arguments)] = joined(stream([text], {"f": schema}))[1]
        assert json.loads(arguments) == {"path": wanted}


def test_message():
    """The shape of the published helper: arguments are an object, as the chat template needs."""
    text = f"<longcat_think>hm</longcat_think>Adding.\n{transcripts.ADD}</longcat_s>"
    assert parse_model_response(text, transcripts.TOOLS) == {
        "role": "assistant",
        "content": "Adding.\n",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "func_add", "arguments": {"x1": 125679, "x2": 234519}},
            }
        ],
    }
    assert parse_model_response("Hello.</longcat_s>") == {"role": "assistant", "content": "Hello."}


def test_message_without_tools_takes_any_name():
    message = parse_model_response(transcripts.call("functions.f", ("a", "1")))
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}


def test_message_that_was_cut_off():
    message = parse_model_response('<longcat_tool_call>f {"a": "/tm')
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": "/tm'}


def test_published_example(tmp_path):
    """The whole conversation renders, and its assistant turns parse to the messages they were."""
    from transformers import PreTrainedTokenizerFast

    write_tokenizer(tmp_path, build_vocabulary(600))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    conversation = [
        {"role": "system", "content": "You have tools."},
        {"role": "user", "content": "Please calculate 125679 + 234519."},
        parse_model_response(f"I add.\n{transcripts.ADD}</longcat_s>", transcripts.TOOLS),
        {"role": "tool", "content": '{"result": 360198}'},
        {"role": "assistant", "content": "It is 360198."},
    ]
    text = tokenizer.apply_chat_template(conversation, tools=transcripts.TOOLS, tokenize=False)
    declared, _, rest = text.partition("</longcat_tool_declare>")
    assert "### Tool name: func_add" in declared
    assert rest == (
        "<longcat_system>You have tools.<longcat_user>Please calculate 125679 + 234519."
        f"<longcat_assistant>I add.\n{transcripts.ADD}</longcat_s><longcat_user>"
        '<longcat_tool_response>{"result": 360198}</longcat_tool_response>'
        "<longcat_assistant>It is 360198.</longcat_s>"
    )
    turns = re.findall("<longcat_assistant>(.*?</longcat_s>)", rest, flags=re.DOTALL)
    read = [parse_model_response(turn, transcripts.TOOLS) for turn in turns]
    assert read == [turn for turn in conversation if turn["role"] == "assistant"]


def test_offline_use_needs_no_sglang():
    script = (
        "import sys, sglang_longcat as s; s.parse_model_response('<longcat_tool_call>f ');"
        "assert not {'torch', 'sglang', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.fixture(scope="module")
def sglang_parser():
    """make(tools, ...): SGLang's FunctionCallParser, with our parser registered."""
    from sglang.srt.entrypoints.openai.protocol import Tool
    from sglang.srt.function_call.function_call_parser import FunctionCallParser

    tool_parser.register()
    tools = [Tool.model_validate(tool) for tool in transcripts.TOOLS]
    return lambda **options: FunctionCallParser(tools, tool_parser.NAME, **options)


@cases
def test_detector(sglang_parser, text, content, calls):
    """SGLang's two ways through the detector; at the end of a stream, SGLang adds nothing."""
    shown, items = sglang_parser().parse_non_stream(text)
    assert (shown, [(item.name, item.parameters) for item in items]) == (content, calls)
    parser = sglang_parser()
    chunks = [parser.parse_stream_chunk(text[i : i + 7]) for i in range(0, len(text), 7)]
    chunks.append(parser.parse_stream_end())
    assert "".join(chunk for chunk, _ in chunks) == content
    sent = [""] * len(calls)
    for _, items in chunks:
        for item in items:
            sent[item.tool_index] += item.parameters
    assert sent == [arguments for _, arguments in calls]
    assert sent == parser.detector.streamed_args_for_tool
    assert sent == [call["arguments"] for call in parser.detector.prev_tool_call_arr]


def test_unknown_tool_is_forwarded_on_request(sglang_parser, monkeypatch):
    monkeypatch.setenv("SGLANG_FORWARD_UNKNOWN_TOOLS", "1")
    _, [item] = sglang_parser().parse_non_stream(transcripts.call("other", ("a", "1")))
    assert (item.name, item.parameters, item.tool_index) == ("other", '{"a": 1}', -1)


def test_command_line_offers_both_parsers(sglang_parser):
    from sglang.srt import server_args

    assert tool_parser.NAME in server_args._tool_call_parser_choices()
    assert tool_parser.NAME in server_args._reasoning_parser_choices()


TEMPLATE = (ROOT / "sglang_longcat/checkpoint/chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("template", "parsers"),
    [
        (TEMPLATE, ("longcat", None)),
        (f"{TEMPLATE}<longcat_think>", ("longcat", "longcat")),
        ("<tools>{{ messages }}</tools> <function=f><parameter=p>", ("qwen3_coder", None)),
    ],
)
def test_auto_finds_both_parsers(template, parsers):
    """The template decides, where `auto` is resolved and where the template manager suggests. The
    templates of other models keep their parsers, and registering again changes nothing."""
    from sglang.srt.parser import template_detection, template_manager

    tool_parser.register()
    before = template_detection.TOOL_CALL_PARSER_RULES
    tool_parser.register()
    assert before is template_detection.TOOL_CALL_PARSER_RULES
    assert template_detection.detect_tool_call_parser(template, None) == parsers[0]
    assert template_detection.detect_reasoning_parser(template, None) == parsers[1]
    manager = template_manager.TemplateManager()
    manager._run_template_detection(template, None)
    suggested = manager.suggested_tool_call_parser, manager.suggested_reasoning_parser
    assert suggested == parsers


def test_extra_http_workers_import_our_app_unless_told_otherwise(monkeypatch):
    name = "SGLANG_HTTP_SERVER_APP_PATH"
    for preset, wanted in ((None, tool_parser.APP), ("mine:app", "mine:app")):
        monkeypatch.delenv(name, raising=False)
        if preset:
            monkeypatch.setenv(name, preset)
        tool_parser.register()
        assert os.environ[name] == wanted


def accepts(tag, text):
    import xgrammar

    vocabulary = [bytes([value]) for value in range(256)] + ["</s>"]
    info = xgrammar.TokenizerInfo(vocabulary, stop_token_ids=[256])
    matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_structural_tag(tag))
    return matcher.accept_string(text) and matcher.accept_token(256)


def test_required_call_is_constrained_to_the_models_form(sglang_parser):
    kind, tag = sglang_parser().get_structure_constraint("required")
    assert kind == "structural_tag"
    assert accepts(tag, transcripts.ADD.rstrip())
    assert accepts(tag, f"{transcripts.ADD}{transcripts.call('now').rstrip()}")
    assert accepts(tag, transcripts.call("write", ("path", 'a "b"'), ("mode", "w")).rstrip())
    for text in (
        "",
        f"I add. {transcripts.ADD.rstrip()}",
        transcripts.call("func_add", ("x1", "1")).rstrip(),
        transcripts.call("func_add", ("x1", "1"), ("x2", "two")).rstrip(),
        transcripts.call("write", ("mode", "x")).rstrip(),
        transcripts.call("rm").rstrip(),
    ):
        assert not accepts(tag, text), text


def test_named_call_is_the_only_one(sglang_parser):
    from sglang.srt.entrypoints.openai.protocol import ToolChoice

    choice = ToolChoice(function={"name": "now"})
    _, tag = sglang_parser().get_structure_constraint(choice, parallel_tool_calls=False)
    now = transcripts.call("now").rstrip()
    assert accepts(tag, now)
    assert not accepts(tag, f"{now}\n{now}")
    assert not accepts(tag, transcripts.ADD.rstrip())


def test_free_choice_is_not_constrained(sglang_parser):
    assert sglang_parser().get_structure_constraint("auto") is None

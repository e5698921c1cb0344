"""Tool calls through the OpenAI client and the real server; a grammar has the model write them."""

import json
import re

import pytest
from openai import OpenAI
from transformers import PreTrainedTokenizerFast

from sglang_longcat.assets import nano
from tests import harness

MODEL = "longcat"
ASK = [{"role": "user", "content": "What is 125679 + 234519?"}]
NUMBER = {"type": "number"}
ADD = {
    "type": "function",
    "function": {
        "name": "func_add",
        "parameters": {
            "type": "object",
            "properties": {"x1": NUMBER, "x2": NUMBER},
            "required": ["x1", "x2"],
        },
    },
}
SWITCH = {
    "type": "function",
    "function": {
        "name": "switch",
        "parameters": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "room": {"enum": ["hall", "attic"]}},
            "required": ["on", "room"],
        },
    },
}
NOTE = {
    "type": "function",
    "function": {
        "name": "note",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}
TRANSCRIPT = (
    "Adding.\n<longcat_tool_call>func_add\n"
    "<longcat_arg_key>x1</longcat_arg_key>\n<longcat_arg_value>125679</longcat_arg_value>\n"
    "<longcat_arg_key>x2</longcat_arg_key>\n<longcat_arg_value>234519</longcat_arg_value>\n"
    "</longcat_tool_call>"
)


@pytest.fixture(scope="module", params=["random weights", "nano"])
def chat(request, checkpoint):
    """Of a model that knows nothing, and of one that knows some Python and no tool calls."""
    path = nano() if request.param == "nano" else checkpoint
    options = {"served_model_name": MODEL, "tool_call_parser": "longcat"}
    with harness.server(path, sampling_defaults="openai", **options) as running:
        client = OpenAI(
            base_url=f"{running.base_url}/v1",
            api_key="none",
            max_retries=0,
            timeout=180,  # a forced call took more than 60 s beside a load of 14
        )

        def whole(messages, *, tools, **asked):
            asked = {"temperature": 0, "max_tokens": 256, "tools": list(tools), **asked}
            return client.chat.completions.create(model=MODEL, messages=messages, **asked)

        def ask(messages=ASK, *, tools=(ADD, SWITCH), **asked):
            return read(whole(messages, tools=tools, **asked))

        ask.whole = whole
        ask.tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
        yield ask


def read(answer):
    """(content, [(name, arguments)], finish reason) of an answer, streamed or not."""
    content, calls, reason = "", {}, None
    for chunk in [answer] if hasattr(answer, "usage") and not hasattr(answer, "close") else answer:
        for choice in chunk.choices:
            part = choice.message if hasattr(choice, "message") else choice.delta
            content += part.content or ""
            for call in part.tool_calls or []:
                calls.setdefault(call.index, ["", ""])
                calls[call.index][0] += call.function.name or ""
                calls[call.index][1] += call.function.arguments or ""
            reason = choice.finish_reason or reason
    return content, [tuple(calls[index]) for index in sorted(calls)], reason


def forced(text):
    return {"extra_body": {"regex": re.escape(text).replace("\\\n", "\\n").replace("\\ ", " ")}}


streamed_and_not = pytest.mark.parametrize("stream", [False, True])
SUM = '{"x1": 125679, "x2": 234519}'


@streamed_and_not
def test_call(chat, stream):
    """The tags survive detokenizing, the text before the call is kept, EOS is not part of it."""
    answer = chat(stream=stream, **forced(TRANSCRIPT))
    assert answer == ("Adding.\n", [("func_add", SUM)], "tool_calls")


@streamed_and_not
def test_call_cut_off(chat, stream):
    """The arguments stay open JSON, and the reason says why."""
    text = "<longcat_tool_call>note\n<longcat_arg_key>text</longcat_arg_key>\n<longcat_arg_value>"
    regex = forced(text)["extra_body"]["regex"] + "a{2000}"
    content, [(name, arguments)], reason = chat(
        tools=[NOTE], stream=stream, max_tokens=150, extra_body={"regex": regex}
    )
    assert (content, name, reason) == ("", "note", "length")
    assert re.fullmatch('{"text": "a+', arguments)


NAMED = {"type": "function", "function": {"name": "switch"}}


@streamed_and_not
@pytest.mark.parametrize(
    ("choice", "tools"), [("required", [SWITCH]), (NAMED, [SWITCH]), (NAMED, [NOTE, SWITCH, ADD])]
)
def test_forced_choice(chat, stream, choice, tools):
    """A model that has never seen a call writes a valid one: only the grammar can make it."""
    content, calls, reason = chat(
        tools=tools, stream=stream, tool_choice=choice, parallel_tool_calls=False
    )
    assert (content, reason, [name for name, _ in calls]) == ("", "tool_calls", ["switch"])
    arguments = json.loads(calls[0][1])
    assert arguments["on"] in (True, False)
    assert arguments["room"] in ("hall", "attic")


def test_none_leaves_text(chat):
    content, calls, _ = chat(tool_choice="none", **forced(TRANSCRIPT))
    assert (content, calls) == (TRANSCRIPT, [])


def test_required_call_of_any_tool(chat):
    """Several tools, several calls allowed: each that ends is complete and of a declared tool."""
    wide = dict(ADD["function"], parameters=SWITCH["function"]["parameters"])
    tools = [SWITCH, {"type": "function", "function": wide}]
    content, calls, reason = chat(tools=tools, tool_choice="required")
    assert content == ""
    assert calls
    for name, arguments in calls if reason == "tool_calls" else calls[:-1]:
        assert name in ("switch", "func_add")
        assert set(json.loads(arguments)) == {"on", "room"}


def test_results_go_back(chat):
    """The client's arguments are a string; the conversation is rendered with the object in it."""

    def conversation(arguments):
        function = {"name": "func_add", "arguments": arguments}
        call = {"id": "1", "type": "function", "function": function}
        return [
            *ASK,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "360198"},
        ]

    seen = chat.tokenizer.apply_chat_template(
        conversation(json.loads(SUM)), tools=[ADD], add_generation_prompt=True, return_dict=False
    )
    answer = chat.whole(conversation(SUM), tools=[ADD], **forced("It is 360198."))
    assert read(answer) == ("It is 360198.", [], "stop")
    assert answer.usage.prompt_tokens == len(seen)

"""The OpenAI API of the real server, on the CPU in fp32, answers as the oracle does."""

import json
import urllib.request

import pytest
import torch
from openai import OpenAI

from tests import harness

NEW = 8  # tokens per answer
MODEL = "longcat"
HELLO = [{"role": "user", "content": "Name three rivers of Europe."}]
PROMPT = "The water of the river"


@pytest.fixture(scope="module")
def server(checkpoint):
    """Without the checkpoint's repetition penalty, of which the oracle knows nothing."""
    options = {"served_model_name": MODEL, "sampling_defaults": "openai"}
    with harness.server(checkpoint, **options) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def chat(client):
    def ask(messages, **options):
        asked = {"temperature": 0, "max_tokens": NEW, **options}
        return client.chat.completions.create(model=MODEL, messages=messages, **asked)

    return ask


@pytest.fixture(scope="module")
def complete(client):
    def ask(prompt, **options):
        asked = {"temperature": 0, "max_tokens": NEW, **options}
        return client.completions.create(model=MODEL, prompt=prompt, **asked)

    return ask


@pytest.fixture(scope="module")
def expected(tokenizer, greedy):
    """The oracle's answer to a conversation or to plain text: (prompt ids, answer ids, text)."""

    def answer(prompt):
        if isinstance(prompt, str):
            ids = tokenizer.encode(prompt)
        else:
            ids = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=False
            )
        tokens = greedy(ids, NEW)
        return ids, tokens, tokenizer.decode(tokens, skip_special_tokens=True)

    return answer


def get_json(server, path):
    with urllib.request.urlopen(server.base_url + path, timeout=30) as response:
        return json.load(response)


def test_chat(chat, expected):
    """Another template, tokenizer or model than the checkpoint's."""
    ids, tokens, text = expected(HELLO)
    answer = chat(HELLO)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(tokens))


def test_chat_over_several_turns(chat, expected):
    """The second question shares its prefix with the first: KV from the radix cache, and the
    predecessors of the first new token from the request."""
    reply = chat(HELLO).choices[0].message.content
    dialogue = [
        {"role": "system", "content": "Answer briefly."},
        *HELLO,
        {"role": "assistant", "content": reply},
        {"role": "user", "content": "And three mountains?"},
    ]
    for turns in (2, 4):
        answer = chat(dialogue[:turns])
        assert answer.choices[0].message.content == expected(dialogue[:turns])[2]


def test_chat_streamed(chat, expected):
    """Detokenizing piece by piece loses or doubles characters, or the last chunk has no reason."""
    chunks = list(chat(HELLO, stream=True, stream_options={"include_usage": True}))
    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in deltas) == expected(HELLO)[2]
    assert deltas[-1].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == NEW


def test_completion_streamed_and_not(complete, expected):
    text = expected(PROMPT)[2]
    assert complete(PROMPT).choices[0].text == text
    assert "".join(chunk.choices[0].text for chunk in complete(PROMPT, stream=True)) == text


def test_completion_of_token_ids(complete, expected):
    """A batch of prompts given as ids, of different lengths, comes back in order."""
    wanted = [expected(prompt) for prompt in (PROMPT, "x", "one two three four five six")]
    answer = complete([ids for ids, _, _ in wanted])
    assert [choice.text for choice in answer.choices] == [text for _, _, text in wanted]


@pytest.mark.parametrize("stream", [False, True])
def test_two_choices(chat, expected, stream):
    """n=2 runs the prompt in two request slots; at temperature 0 both give the greedy answer."""
    answer = chat(HELLO, n=2, stream=stream)
    texts = {0: "", 1: ""}
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta if stream else choice.message).content or ""
    assert texts == dict.fromkeys((0, 1), expected(HELLO)[2])


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(complete, expected, stream):
    """The answer ends before the stop string, which the oracle's answer contains."""
    text = expected(PROMPT)[2]
    stop = text[4:6]
    answer = complete(PROMPT, stop=[stop], stream=stream)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_chat_logprobs(chat, expected, oracle):
    """Logprobs that are not those of the oracle, to 1e-3, or alternatives in another order."""
    ids, tokens, _ = expected(HELLO)
    rows = oracle(ids + tokens)[len(ids) - 1 : -1].log_softmax(dim=-1)
    content = chat(HELLO, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(content) == NEW
    for entry, row, token in zip(content, rows, tokens):
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-3)
        logprobs = torch.tensor([alternative.logprob for alternative in entry.top_logprobs])
        torch.testing.assert_close(logprobs, row.topk(3).values, atol=1e-3, rtol=0)


def test_completion_logprobs(complete, expected, oracle):
    """Those of the prompt, which `echo` asks for, and those of the answer."""
    ids, tokens, text = expected(PROMPT)
    choice = complete(PROMPT, logprobs=1, echo=True).choices[0]
    assert choice.text == PROMPT + text
    assert choice.logprobs.token_logprobs[0] is None
    logprobs = torch.tensor(choice.logprobs.token_logprobs[1:])
    torch.testing.assert_close(logprobs, oracle.logprobs(ids + tokens), atol=1e-3, rtol=0)


@pytest.mark.parametrize("count", [1, 3])
def test_max_tokens(complete, expected, tokenizer, count):
    answer = complete(PROMPT, max_tokens=count)
    assert answer.choices[0].text == tokenizer.decode(expected(PROMPT)[1][:count])
    assert answer.usage.completion_tokens == count


def test_top_k_of_one_is_greedy(complete, expected):
    """Sampling parameters beyond the OpenAI ones reach the sampler."""
    answer = complete(PROMPT, temperature=2.0, extra_body={"top_k": 1})
    assert answer.choices[0].text == expected(PROMPT)[2]


def test_information(server, client, checkpoint):
    assert [model.id for model in client.models.list()] == [MODEL]
    with urllib.request.urlopen(f"{server.base_url}/health", timeout=30) as response:
        assert response.status == 200
    information = get_json(server, "/get_server_info")
    assert (information["model_path"], information["version"]) == (str(checkpoint), "0.5.23")


def test_log_proves_activation_once(server):
    """The in-tree model served instead, or every rank and process repeats the line."""
    assert server.log.count("sglang-longcat 0.1.0 is active: LongCat-Flash-Lite on ") == 1
    assert server.log.count("N-gram cache: ") == 1

"""Requests whose answers depend on counting tokens, and what to compare of their answers.

Owns: the cases of `test_counts`, and one short form for the answers of every API, streamed or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.harness import Server
from tests.serving import http

Body = dict[str, Any]
PROMPT = "def add(a, b):\n    return"  # nano goes on with drafts of every accepted length
ASK = [{"role": "user", "content": "Write code."}]  # nano's answer ends with EOS
ASKED = "<longcat_user>Write code.<longcat_assistant>"
GREEDY: Body = {"temperature": 0}
LOGPROBS: Body = {"return_logprob": True, "top_logprobs_num": 2}
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
TAGS = {"regex": "<longcat_think>(ab)+c</longcat_think>(xy){3}"}


@dataclass(frozen=True)
class Free:
    """What nano writes after PROMPT: its first tokens and their text, and the text of each."""

    ids: list[int]
    text: str
    starts: list[int]  # where the text of each token starts

    def piece(self, i: int) -> str:
        """Text that spans tokens i and i + 1 and stands nowhere before."""
        piece = self.text[self.starts[i] : self.starts[i + 1] + 1]
        assert self.text.index(piece) == self.starts[i]
        return piece


def generate(**sampling: Any) -> tuple[str, Body]:
    wanted = {**GREEDY, "max_new_tokens": 10, **sampling}
    return "/generate", {"text": PROMPT, "sampling_params": wanted, **LOGPROBS}


def answered(**sampling: Any) -> tuple[str, Body]:
    path, body = generate(**{"max_new_tokens": 44, **sampling})
    return path, body | {"text": ASKED}


def hidden(count: int) -> tuple[str, Body]:
    path, body = generate(max_new_tokens=count)
    return path, body | {"text": f"{count} hidden states", "return_hidden_states": True}


def complete(**fields: Any) -> tuple[str, Body]:
    return "/v1/completions", {"prompt": PROMPT, **GREEDY, "max_tokens": 10, **fields}


def chat(**fields: Any) -> tuple[str, Body]:
    return "/v1/chat/completions", {"messages": ASK, **GREEDY, "max_tokens": 44, **fields}


def respond(**fields: Any) -> tuple[str, Body]:
    return "/v1/responses", {"input": "Write code.", **GREEDY, **fields}


def message(**fields: Any) -> tuple[str, Body]:
    return "/v1/messages", {"messages": ASK, **GREEDY, "max_tokens": 44, **fields}


WORDS = ["def", "code(", "self,"]  # of nano's answer to ASK
GRAMMAR = {"regex": "(ab|cd){2,3}!", "ignore_eos": True}
Case = Callable[[Free], tuple[str, Body]]


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for n in range(6):
        cases[f"generate max {n}"] = lambda _, n=n: generate(max_new_tokens=n)
        cases[f"generate hidden {n}"] = lambda _, n=n: hidden(n)
    for i in range(1, 6):
        cases[f"generate stop token {i}"] = lambda f, i=i: generate(stop_token_ids=[f.ids[i]])
        cases[f"generate stop {i}"] = lambda f, i=i: generate(stop=f.piece(i))
        cases[f"completions max {i}"] = lambda _, i=i: complete(max_tokens=i, logprobs=2)
        cases[f"completions stop {i}"] = lambda f, i=i: complete(stop=f.piece(i), logprobs=1)
        cases[f"chat max {i}"] = lambda _, i=i: chat(max_completion_tokens=i, logprobs=True)
        cases[f"chat thinking {i}"] = lambda _, i=i: chat(max_tokens=i, **THINK)
        cases[f"responses max {i}"] = lambda _, i=i: respond(max_output_tokens=i)
        cases[f"messages max {i}"] = lambda _, i=i: message(max_tokens=i)
    for word in WORDS:
        cases[f"chat stop {word}"] = lambda _, word=word: chat(stop=word)
        cases[f"messages stop {word}"] = lambda _, word=word: message(stop_sequences=[word])
    for n in (8, 9, 10):
        cases[f"generate grammar {n}"] = lambda _, n=n: generate(**GRAMMAR, max_new_tokens=n)
    for n in (12, 13, 14, 27, 44):
        cases[f"chat tags {n}"] = lambda _, n=n: chat(**TAGS, max_tokens=n)
    return cases | {
        "generate stop kept": lambda f: generate(stop=f.piece(2), no_stop_trim=True),
        "generate stop cut": lambda f: generate(stop=f.piece(4), max_new_tokens=5),
        "generate stop token kept": lambda f: generate(
            stop_token_ids=[f.ids[3]], no_stop_trim=True
        ),
        "generate stop token ignored": lambda f: generate(
            stop_token_ids=[f.ids[3]], ignore_eos=True
        ),
        "generate least": lambda f: generate(stop_token_ids=[f.ids[2]], min_new_tokens=5),
        "generate n": lambda _: generate(n=2, max_new_tokens=5),
        "generate end": lambda _: answered(),
        "generate end ignored": lambda _: answered(ignore_eos=True),
        "generate end banned": lambda _: answered(min_new_tokens=40),
        "generate empty grammar": lambda _: generate(ebnf='root ::= ""', ignore_eos=True),
        "completions echo": lambda _: complete(max_tokens=3, echo=True, logprobs=1),
        "completions n": lambda _: complete(max_tokens=3, n=2),
        "completions least": lambda f: complete(stop_token_ids=[f.ids[2]], min_tokens=6),
        "completions end ignored": lambda _: complete(prompt=ASKED, max_tokens=44, ignore_eos=True),
        "chat whole": lambda _: chat(),
        "chat n": lambda _: chat(max_tokens=6, n=2),
        "chat thinking whole": lambda _: chat(**THINK),
        "chat thinking stop": lambda _: chat(**THINK, stop="self,"),
        "responses whole": lambda _: respond(),
        "messages whole": lambda _: message(),
        "messages thinking": lambda _: message(thinking={"type": "enabled", "budget_tokens": 1024}),
    }


CASES = _cases()
REGEX: dict[str, Case] = {  # a stream cannot take back what a later token makes a match
    "generate regex": lambda f: generate(stop_regex=f.piece(3)[:1] + "$"),
}


def post(server: Server, path: str, body: Body) -> Any:
    """The answer, or the list of events of a stream."""
    status, text = http.post(server, path, {"model": "longcat", **body}, timeout=120)
    if status != 200:
        return status, text
    if not body.get("stream"):
        return json.loads(text)
    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def streamed(path: str, body: Body) -> Body:
    options = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    return {**body, "stream": True, **options}

"""Counts of tokens are right, the same with speculation, streamed and not, in every API.

Two servers of LongCat-nano, one after the other, answer all cases of `counting`. In the second one
nano's MTP layer drafts three tokens per step, so most ends fall inside a window of four.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from transformers import PreTrainedTokenizerFast

from sglang_longcat.assets import nano
from sglang_longcat.testing.engine_flags import nextn
from tests import harness
from tests.serving.counted import comparable, nearly, short
from tests.serving.counting import CASES, REGEX, WORDS, Free, generate, post, streamed

FLAGS: dict[str, Any] = {
    "served_model_name": "longcat",
    "tool_call_parser": "longcat",
    "reasoning_parser": "longcat",
    "sampling_defaults": "openai",
    "enable_return_hidden_states": True,
}
SERVERS: dict[str, dict[str, Any]] = {"plain": {}, "speculation": nextn(3)}
EOS = 2
UNSTREAMED = ("generate n", *(f"generate hidden {n}" for n in range(6)))  # tested as they are
STREAMED = [name for name in CASES if name not in UNSTREAMED]


class Asked(NamedTuple):
    """Nano's free answer, and all answers: answers[server][case, whether it is streamed]."""

    free: Free
    answers: dict[str, Any]

    def whole(self, name: str) -> dict[str, Any]:
        """The short form. The first two tests prove that it is the same everywhere."""
        return short(self.answers["speculation"][name, False])


@pytest.fixture(scope="module")
def asked() -> Asked:
    answers: dict[str, Any] = {}
    free: Free | None = None
    for name, flags in SERVERS.items():
        with harness.server(nano(), **FLAGS, **flags) as running:
            first, again = (post(running, *generate()) for _ in range(2))
            free = free or _free(first)
            answers[name] = _ask_all(running, free) | {("again", False): again}
    assert free is not None
    return Asked(free, answers)


def _free(answer: Any) -> Free:
    tokenizer, ids = PreTrainedTokenizerFast.from_pretrained(nano()), answer["output_ids"]
    return Free(ids, answer["text"], [len(tokenizer.decode(ids[:i])) for i in range(len(ids))])


def _ask_all(server: harness.Server, free: Free) -> dict[tuple[str, bool], Any]:
    requests = {(name, False): case(free) for name, case in (CASES | REGEX).items()}
    for name in STREAMED:
        path, body = CASES[name](free)
        requests[name, True] = (path, streamed(path, body))
    with ThreadPoolExecutor(8) as pool:
        return dict(
            zip(requests, pool.map(lambda request: post(server, *request), requests.values()))
        )


@pytest.mark.parametrize("name", [*CASES, *REGEX])
def test_speculation_changes_no_field(asked: Asked, name: str) -> None:
    """Red if a count, a length, an end or a text depends on how many drafts a window accepts."""
    plain, fast = (asked.answers[server][name, False] for server in SERVERS)
    assert comparable(fast) == nearly(comparable(plain))


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_adds_up(asked: Asked, server: str, name: str) -> None:
    """Red if the pieces of a stream, or the usage at its end, differ from the answer at once."""
    answers = asked.answers[server]
    assert short(answers[name, True], stream=True) == short(answers[name, False])


def test_ends_fall_inside_windows(asked: Asked) -> None:
    """The cases prove something only if nano accepts 0, 1, 2 and 3 drafts of a window."""
    answers = asked.answers["speculation"]
    native = [answers[name, False] for name in STREAMED if name.startswith("generate")]
    steps = [answer["meta_info"].get("spec_correct_drafts_histogram", []) for answer in native]
    reached = {right for counts in steps for right, count in enumerate(counts) if count}
    assert reached == {0, 1, 2, 3}


@pytest.mark.parametrize("api", ["generate", "completions", "chat", "responses", "messages"])
def test_as_many_tokens_as_asked(asked: Asked, api: str) -> None:
    """Red if a limit of N gives more or fewer than N tokens, or logprobs of others."""
    for count in range(0 if api == "generate" else 1, 6):
        answer = asked.whole(f"{api} max {count}")
        assert answer["tokens"] == count
        assert not answer.get("reasoning tokens")
        assert answer.get("logprobs", count) == answer.get("top logprobs", count)
        assert answer.get("logprobs", count) == count
        assert answer.get("ids", asked.free.ids[:count]) == asked.free.ids[:count]
        assert answer["end"] == {
            "generate": {"type": "length", "length": count},
            "responses": ("incomplete", {"reason": "max_output_tokens"}),
            "messages": ("max_tokens", None),
        }.get(api, ("length", None))


@pytest.mark.parametrize("i", range(1, 6))
def test_ends_at_the_stop(asked: Asked, i: int) -> None:
    """Red if text after a stop gets out, or if tokens after it are counted. A stop string ends
    with the first character of token i + 1, and its tokens count."""
    free, piece = asked.free, asked.free.piece(i)
    token = asked.whole(f"generate stop token {i}")
    assert token["ids"] == free.ids[: i + 1]
    assert token["text"] == free.text[: free.starts[i]]
    for name in (f"generate stop {i}", f"completions stop {i}"):
        answer = asked.whole(name)
        assert answer["text"] == free.text.partition(piece)[0]
        assert answer["tokens"] == answer["logprobs"] == i + 2
    assert asked.whole(f"generate stop {i}")["end"] == {"type": "stop", "matched": piece}


def test_stops_that_are_kept_cut_or_ignored(asked: Asked) -> None:
    free = asked.free
    assert asked.whole("generate stop kept")["text"].endswith(free.piece(2))
    assert asked.whole("generate stop cut")["end"] == {"type": "length", "length": 5}
    assert asked.whole("generate stop token kept")["text"] == free.text[: free.starts[4]]
    assert asked.whole("generate stop token ignored")["ids"] == free.ids
    assert asked.whole("generate least")["tokens"] >= 5
    assert asked.whole("completions least")["tokens"] >= 6


def test_ends_at_eos(asked: Asked) -> None:
    end = asked.whole("generate end")
    assert end["end"] == {"type": "stop", "matched": EOS}
    assert end["ids"].index(EOS) + 1 == end["tokens"] == end["logprobs"]
    assert asked.whole("generate end ignored")["tokens"] == 44
    assert asked.whole("completions end ignored")["tokens"] == 44
    assert EOS not in asked.whole("generate end banned")["ids"][:40]


def test_a_grammar_ends_the_answer_also_without_eos(asked: Asked) -> None:
    """Red if `ignore_eos` adds a token that the grammar does not know, or hides its end."""
    for count in (8, 9, 10):
        answer = asked.whole(f"generate grammar {count}")
        assert re.fullmatch("(ab|cd){2,3}!", answer["text"])
        assert (answer["tokens"], answer["ids"][-1]) == (8, EOS)
        assert answer["end"] == {"type": "stop", "matched": EOS}
    assert asked.whole("generate empty grammar")["ids"] == [EOS]


def test_one_hidden_state_per_token(asked: Asked) -> None:
    """The first entry has the prompt's rows, of which the last gave the first token."""
    for count in range(6):
        answer = asked.answers["speculation"][f"generate hidden {count}", False]
        assert len(answer["meta_info"]["hidden_states"]) == count


def test_cached_tokens(asked: Asked) -> None:
    """All of a repeated prompt but its last token; with drafts, whose cache has pairs of tokens as
    keys, but the last two."""
    for server, missing in (("plain", 1), ("speculation", 2)):
        meta = asked.answers[server]["again", False]["meta_info"]
        assert meta["cached_tokens"] == meta["prompt_tokens"] - missing


@pytest.mark.parametrize("word", WORDS)
def test_the_stop_sequence_is_named(asked: Asked, word: str) -> None:
    """Red if an Anthropic client reads that the model had finished."""
    answer, whole = asked.whole(f"messages stop {word}"), asked.whole("messages whole")
    assert answer["end"] == ("stop_sequence", word)
    assert whole["end"] == ("end_turn", None)
    assert answer["text"] == whole["text"].partition(word)[0]
    assert asked.whole(f"chat stop {word}")["end"] == ("stop", word)


def test_an_answer_without_reasoning_is_content(asked: Asked) -> None:
    """Red if a request with thinking gets its answer as reasoning although no tag opened any."""
    whole = asked.whole("chat whole")
    assert whole["text"]
    assert asked.whole("chat thinking whole") == whole
    assert asked.whole("messages thinking") == asked.whole("messages whole")
    for count in range(1, 6):
        answer = asked.whole(f"chat thinking {count}")
        assert (answer["tokens"], answer["reasoning tokens"]) == (count, 0)
        assert answer["text"]
        assert whole["text"].startswith(answer["text"])


def test_reasoning_that_the_model_opens_is_counted(asked: Asked) -> None:
    """The grammar makes nano write the opening tag with 13 tokens. Red if reasoning exceeds an
    answer that was cut, or if a tag of many tokens is not seen."""
    whole = asked.whole("chat tags 44")
    assert re.fullmatch("(ab)*abc", whole["reasoning"])
    assert (whole["text"], whole["end"]) == ("xyxyxy", ("stop", EOS))
    most = whole["reasoning tokens"]
    assert 13 < most < whole["tokens"]
    for count in (12, 13, 14, 27):
        right = min(count, most) if count >= 13 else 0
        assert asked.whole(f"chat tags {count}")["reasoning tokens"] == right

"""SGLang's sessions against the oracle: turns that continue, branch from, cut or replace others.

Owns: `/open_session` with its `session_params`, and streaming sessions, which keep one request slot
from turn to turn. What a turn continues is worked out here from those options alone.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Engine, Server, engine, server
from tests.model.scoring import EOS, Answer, Oracle, answer, assert_same, text
from tests.model.test_scheduling import complete, open_stream, post

LENGTHS = (1, 2, 3, 9)  # of what a turn adds, around the n-gram order
SAMPLING = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}


def later(length: int, *, seed: int) -> list[int]:
    """What a later turn adds: no BOS, which SGLang would take off; in every other one an EOS."""
    tokens = text(length + 1, seed=seed)[1:]
    if seed % 2:
        tokens[seed % length] = EOS
    return tokens


def continued(history: list[int], tokens: list[int], reply: dict[str, Any]) -> Answer:
    """The answer to `tokens`, before which the session must have put `history`."""
    turn = answer([*history, *tokens], reply)
    assert turn.meta["finish_reason"]["type"] == "length", turn.meta
    assert turn.meta["prompt_tokens"] == len(turn.prompt), "the session put something else before"
    return turn


def say(
    llm: Engine, session: str, tokens: list[int], before: Answer | None = None, **options: Any
) -> Answer:
    """One turn after `before`, with those of its tokens that the options leave."""
    history = list(before.sequence) if before else []
    if options.get("drop_previous_output") and before:
        history = before.prompt
    reply = llm.generate(
        input_ids=tokens,
        session_params={"id": session, "rid": before.meta["id"] if before else None, **options},
        sampling_params=SAMPLING,
        return_logprob=True,
    )
    return continued(history[: options.get("offset")], tokens, reply)


@pytest.mark.parametrize(
    "flags",
    [
        {"chunked_prefill_size": 3},
        {"chunked_prefill_size": 8, "page_size": 4, "disable_overlap_schedule": True},
    ],
    ids=["overlap", "pages-no-overlap"],
)
def test_turns_that_branch_cut_and_replace(
    tiny: Path, oracle: Oracle, flags: dict[str, Any]
) -> None:
    """Red if a turn is hashed with the end of another branch, with tokens that its offset cut off,
    or with the output that it was told to drop."""
    with engine(tiny, **flags) as llm:
        for name in ("one", "two"):
            assert llm.call("open_session", 1 << 20, session_id=name) == name
        roots = {name: say(llm, name, text(n, seed=n)) for name, n in (("one", 11), ("two", 3))}
        turns = [*roots.values()]
        for seed, length in enumerate(LENGTHS):
            for name, root in roots.items():
                more = later(length, seed=seed)
                branch = say(llm, name, more, root)
                turns += [
                    branch,
                    say(llm, name, [*more, 77], branch),
                    say(llm, name, more, branch, offset=len(branch.sequence) - 1 - 2 * seed),
                    say(llm, name, more, branch, drop_previous_output=True),
                ]
        turns.append(say(llm, "one", [5, 6], roots["one"], replace=True))
    assert any(turn.meta["cached_tokens"] > len(turn.prompt) - 4 for turn in turns)
    assert_same(turns, oracle)


class Stream:
    """A streaming session over HTTP; `turns` are those that ran to their end."""

    def __init__(self, http: Server, name: str) -> None:
        self.http, self.name = http, name
        self.turns: list[Answer] = []
        options = {"session_id": name, "capacity_of_str_len": 1 << 20, "streaming": True}
        post(http, "/open_session", options).close()

    @property
    def params(self) -> dict[str, str]:
        return {"id": self.name}

    def turn(self, tokens: list[int]) -> None:
        history = list(self.turns[-1].sequence) if self.turns else []
        body = {"input_ids": tokens, "sampling_params": SAMPLING, "return_logprob": True}
        with post(self.http, "/generate", {**body, "session_params": self.params}) as response:
            self.turns.append(continued(history, tokens, json.load(response)))

    def start(self, tokens: list[int]) -> Any:
        """A long turn that is decoding when this returns."""
        return open_stream(self.http, tokens, session_params=self.params)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_streaming_sessions(tiny: Path, oracle: Oracle, overlap: bool) -> None:
    """Red if a turn, in the slot of the turn before, is hashed with what that one's last,
    overlapped step left there, or, after a turn that was aborted, with that turn's tokens."""
    with (
        server(
            tiny,
            enable_streaming_session=True,
            max_running_requests=4,
            chunked_prefill_size=3,
            disable_overlap_schedule=not overlap,
        ) as http,
        ThreadPoolExecutor(4) as pool,
    ):
        streams = [Stream(http, f"stream {i}") for i in range(3)]
        plain = []
        for seed, length in enumerate(LENGTHS):
            more = later(length, seed=seed)
            others = pool.map(lambda n: complete(http, text(n, seed=n)), (2 + seed, 9 + seed))
            list(pool.map(lambda stream, more=more: stream.turn(more), streams))
            plain += others
            aborted = streams[0].start([700 + seed, 800 + seed])
            post(http, "/abort_request", {"abort_all": True}).close()
            assert b'"type":"abort"' in aborted.read().replace(b" ", b"")
    assert all(len(stream.turns) == len(LENGTHS) for stream in streams)
    assert_same([*plain, *(turn for stream in streams for turn in stream.turns)], oracle)

"""`benchmarks/conversations`: what a conversation sends, and what a row of its report counts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import plots
from benchmarks.conversations import client, figure, turns
from benchmarks.conversations.__main__ import ARMS, EXTRA, parse
from benchmarks.conversations.play import Conversation, Sizes
from benchmarks.serving import server, started

SIZES = Sizes(conversations=2, turns=3, first=10, user=4, answer=3, users=1)


def test_a_conversation_grows_by_answer_eos_and_new_words() -> None:
    """Red if an answer is lost, if its end is not marked, if two conversations share words, or if a
    second arm is asked other things than the first."""
    one, again, two = (Conversation(seed, SIZES, words=2000, eos=2) for seed in (1, 1, 2))
    assert one.tokens == again.tokens
    assert one.tokens[0] != two.tokens[0]
    begin = list(one.tokens)
    one.answered([7, 8, 9])
    assert one.tokens[:14] == [*begin, 7, 8, 9, 2]
    assert len(one.tokens) == 10 + 3 + 4
    assert min(one.tokens[14:]) >= 30
    one.answered([7, 8, 9])
    assert len(one.tokens) + SIZES.answer == SIZES.longest


def reply(ttft: float, **changes: Any) -> client.Reply:
    values = {"output": [1, 2, 3], "prompt_tokens": 10, "cached_tokens": 5}
    values |= {"host_tokens": 2, "accept_length": 2.0}
    return client.Reply(**{**values, **changes}, ttft=ttft, seconds=ttft + 0.5)


def test_a_row_counts_all_replies() -> None:
    """Red if a share is the mean of shares, a rate counts the first token's time, or percentiles
    are of another side."""
    replies = [reply(0.1 * n) for n in range(1, 10)] + [reply(9, prompt_tokens=110)]
    row = turns.row(2, replies, seconds=6, reusable=100)
    assert row["cached_share"] == 50 / 200
    assert row["host_share"] == 20 / 200
    assert row["reusable_share"] == 0.5
    assert row["ttft_ms"] == pytest.approx(550)
    assert row["ttft_p90_ms"] == pytest.approx(900)
    assert row["tok_s"] == 5
    assert row["request_tok_s"] == pytest.approx(4)
    assert row["accept_length"] == 2
    assert {name for name, _ in turns.COLUMNS.values()} <= set(row)
    without_drafts = turns.row(1, [reply(1, accept_length=None)], seconds=1, reusable=0)
    assert without_drafts["accept_length"] is None


def test_an_answer_that_is_cut_off_is_an_error() -> None:
    """Red if an aborted answer counts as a fast one."""
    said = {"output_ids": [1, 2], "meta_info": {"finish_reason": {"type": "abort"}}}
    for case in (said, {"error": {"message": "no"}}, {}):
        with pytest.raises(client.TurnError, match="of 3 tokens"):
            client.reply(case, 3, ttft=1.0, seconds=2.0)


def parsed(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> argparse.Namespace:
    options = ["h200-tp1-latency", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["conversations", *options, *words])
    return parse()[0]


def test_what_came_back_from_host_memory_is_read() -> None:
    """Red if tokens of the second tier are not told apart, or if a server without one fails."""
    meta = {"prompt_tokens": 9, "cached_tokens": 6}
    details = {"cached_tokens_details": {"device": 2, "host": 4}}
    for more, tokens in ((details, 4), ({}, 0), ({"cached_tokens_details": None}, 0)):
        said = {"output_ids": [1], "meta_info": meta | more}
        assert client.reply(said, 1, ttft=1.0, seconds=2.0).host_tokens == tokens


def test_arms_differ_by_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if an arm's own flags, or those for every arm, do not reach its server, or if an arm with
    another cache has another model class or other drafts."""
    commands = {}

    @contextmanager
    def launched(command: list[str], env: dict[str, str], **_: Any) -> Iterator[None]:
        commands[name] = [word for word in command if "/" not in word]
        yield

    monkeypatch.setattr(server, "launched", launched)
    monkeypatch.setattr(started.serve, "wait_until_ready", lambda process, **_: None)
    monkeypatch.setattr(server, "read_log", lambda log_file, module: {"class": module})
    args = parsed(monkeypatch, tmp_path / "turns.json", "--context-length", "65536")
    for name, (arm, flags) in ARMS.items():
        assert arm is ARMS[name.partition("+")[0]][0]
        with started.started(name, arm, args, flags) as ready:
            assert ready.about["class"] == arm.module
    for name, command in commands.items():
        added = [word for word in command if word not in commands[name.partition("+")[0]]]
        assert added == list(EXTRA[name.removeprefix(name.partition("+")[0])])
        assert "65536" in command
    assert len(commands) == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "context of 32,768: raise --context-length"),
        (["--context-length", "39935"], "39,936 tokens, and the server has a context of 39,935"),
        (["--answer", "0"], "--answer: expected at least 1"),
        (["--arms", "ours+disk"], "expected some of ours, ours"),
    ],
)
def test_bad_options(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: Any
) -> None:
    """Red if a conversation that the server would refuse in its last turn is started."""
    with pytest.raises(SystemExit):
        parsed(monkeypatch, tmp_path / "turns.json", *words)
    assert said in capsys.readouterr().err


class Axes:
    """Keeps what is drawn on it."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[list[float], list[float]]] = {}

    def plot(self, x: list[float], y: list[float], _: str, *, label: str) -> None:
        self.lines[label] = (x, y)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_files_are_joined(tmp_path: Path) -> None:
    """Red if an arm of one file hides that of another."""
    for name, arm in (("a", "ours"), ("b", "in-tree")):
        (tmp_path / name).write_text(json.dumps({"results": {arm: {"runs": []}}}))
    files = [tmp_path / "a", tmp_path / "b"]
    assert list(figure.joined(files)["results"]) == ["ours", "in-tree"]
    with pytest.raises(ValueError, match="has the arm ours too"):
        figure.joined([*files, tmp_path / "a"])


def test_the_figure_has_a_line_for_each_arm(tmp_path: Path, monkeypatch: Any) -> None:
    """Red if a panel shows another figure than its label says, or an arm is not drawn."""
    runs = [{"turn": n, "ttft_ms": 10 * n, "cached_share": n / 10} for n in (1, 2)]
    panels, saved = [Axes(), Axes()], []
    page = SimpleNamespace(tight_layout=lambda: None, savefig=lambda to, **_: saved.append(to))
    monkeypatch.setattr(plots, "new_figure", lambda *sizes, rows: (page, panels))
    said = figure.write({"results": {"ours": {"runs": runs}}}, tmp_path / "turns.svg")
    assert [panel.lines for panel in panels] == [
        {"ours": ([1, 2], [10, 20])},
        {"ours": ([1, 2], [0.1, 0.2])},
    ]
    assert said == f"figure: {saved[0]}"
    assert figure.write({}, tmp_path / "turns.svg") == "no figure: no arm was measured"

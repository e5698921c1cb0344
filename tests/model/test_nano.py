"""LongCat-nano through the real server and engine on a CPU: the accuracy gates and their teeth.

Owns: that every way of serving keeps the numbers of ci/accuracy/thresholds.toml, and that known
mistakes break them by far. Leaves metrics and limits to ci/accuracy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ci.accuracy.nano import (
    MISTAKES,
    Oracle,
    Text,
    engine_scores,
    measure,
    measure_mistake,
    metrics,
    over_http,
)
from ci.accuracy.report import Row, judge, markdown, thresholds
from sglang_longcat.assets import nano
from tests.harness import engine, server

SLOTS = 16384  # KV cache for all windows at once
WIDE = 5.0  # times what is allowed
# bf16 rounding is 10,000 times fp32's, and few tokens follow an EOS: the mildest mistake, no EOS
# rule, leaves the limits by 4.0 times their width.
WIDE_BF16 = 3.0


@pytest.fixture(scope="module")
def checkpoint() -> Path:
    return nano()


@pytest.fixture(scope="module")
def text(checkpoint: Path) -> Text:
    return Text.of(checkpoint)


@pytest.fixture(scope="module")
def oracle(checkpoint: Path, text: Text) -> Oracle:
    return Oracle.of(checkpoint, text)


def gates(measured: dict[str, float], *, dtype: str = "float32", name: str = "nano") -> list[Row]:
    rows = judge(measured, thresholds("nano", dtype), prefix=name)
    print(f"\n{markdown(rows)}")
    return rows


def assert_passed(rows: list[Row]) -> None:
    assert all(row.passed for row in rows), markdown(rows)


def test_server(checkpoint: Path, text: Text, oracle: Oracle) -> None:
    """Red if serving gives trained weights other numbers than the model has: prompts of 384 tokens
    with and without EOS, eight at a time, over HTTP; and greedy answers, token for token."""
    with server(checkpoint, max_total_tokens=SLOTS) as running:
        assert_passed(gates(measure(over_http(running.base_url), text, oracle)))


def test_chunked_prefill_and_prefix_cache(checkpoint: Path, text: Text, oracle: Oracle) -> None:
    """Red if a chunk's first tokens, or those behind a cached prefix, hash other predecessors."""
    with engine(checkpoint, max_total_tokens=SLOTS, chunked_prefill_size=64) as llm:
        assert_passed(gates(measure(llm.generate, text, oracle), name="chunks of 64"))
        rest = metrics(text, engine_scores(llm.generate, text, cached=192), oracle.scores)
    limits = thresholds("nano", "float32")
    gaps = {name: limits[name] for name in ("mean_gap", "max_gap")}
    assert_passed(judge(rest, gaps, prefix="behind a cached prefix"))


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ({"tp_size": 2}, "float32"),
        ({}, "bfloat16"),
        ({"kv_cache_dtype": "fp8_e4m3", "chunked_prefill_size": 256}, "bfloat16"),
    ],
    ids=["tp2", "bfloat16", "fp8-rows"],
)
def test_engine(
    checkpoint: Path, text: Text, oracle: Oracle, flags: dict[str, Any], dtype: str
) -> None:
    """Red if a rank adds the identity part or a word row twice, or if bf16 costs more than it did:
    the GPU is held to the same numbers. So is an FP8 KV cache."""
    with engine(checkpoint, max_total_tokens=SLOTS, dtype=dtype, **flags) as llm:
        assert_passed(gates(measure(llm.generate, text, oracle), dtype=dtype, name=str(flags)))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_known_mistakes_fail_by_far(
    checkpoint: Path, text: Text, oracle: Oracle, mistake: str
) -> None:
    """Red if the gates lose their teeth: wider limits, other text, a model that ignores its n-gram
    tables. A mistake must leave the limits by five times their width, in perplexity and in gap."""
    wrong = measure_mistake(checkpoint, text, oracle, MISTAKES[mistake])
    rows = {row.gate: row for row in gates(wrong, name=mistake)}
    assert rows[f"{mistake} max_gap"].excess > WIDE
    perplexity = max(rows[f"{mistake} {name}perplexity"].excess for name in ("", "after_eos_"))
    assert perplexity > WIDE
    assert max(row.excess for row in gates(wrong, dtype="bfloat16", name=mistake)) > WIDE_BF16


def test_speculation_pays_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Red if a trained draft stops helping: of 4 tokens a step it brings 2.7 on held-out text."""
    from ci.acceptance.__main__ import main

    assert main(["--prompts", "4", "--tokens", "32"]) == 0
    mtp, word = map(json.loads, capsys.readouterr().out.splitlines())
    assert (mtp["mode"], word["mode"]) == ("mtp", "word")
    assert mtp["equal"] == word["equal"] == 4
    assert mtp["acceptance_length"] > 2 > word["acceptance_length"]

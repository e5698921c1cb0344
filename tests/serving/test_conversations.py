"""`python -m benchmarks.conversations` plays conversations over HTTP and writes every turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serving.test_serving_benchmark import run_benchmark, write_recipe

SIZES = {"conversations": 4, "turns": 3, "first": 40, "user": 12, "answer": 8, "users": 2}


def test_every_turn_is_measured_and_reuses_the_turns_before(tmp_path: Path) -> None:
    """Red if a field of SGLang's answers has another name, if a conversation does not continue its
    own answers, or if the warm-up stays in the cache."""
    recipe, out = tmp_path / "tiny-drafts.yaml", tmp_path / "out" / "turns.json"
    write_recipe(recipe)
    words = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    done, said = run_benchmark("benchmarks.conversations", recipe, out, words)
    assert done.returncode == 0, said
    assert "figure: " in done.stdout or "no figure: matplotlib" in done.stdout
    whole = json.loads(out.read_text())
    assert list(whole["results"]) == ["ours"]
    assert {name: whole[name] for name in SIZES} == SIZES
    rows = whole["results"]["ours"]["runs"]
    assert [(row["turn"], row["answered"]) for row in rows] == [(1, 4), (2, 4), (3, 4)]
    assert [row["prompt_tokens"] for row in rows] == [40, 60, 80]
    assert [row["reusable_share"] for row in rows] == pytest.approx([0, 48 / 60, 68 / 80])
    assert rows[0]["cached_share"] == 0
    for row in rows[1:]:  # the last token of an answer is not in the cache, one more with drafts
        lost = (row["reusable_share"] - row["cached_share"]) * row["prompt_tokens"]
        assert 0 <= lost <= 2 + 1e-6, row
    for row in rows:
        assert row["accept_length"] > 1.5
        assert 0 < row["ttft_ms"] <= row["ttft_p90_ms"] <= 1e3 * row["seconds"]
        assert min(row["tok_s"], row["request_tok_s"]) > 0

"""Checkpoints of `sglang-longcat quantize` on the CPU engine, against the oracle on what they mean.

LongCat-nano also keeps its perplexity, and the known mistakes are as visible in 4 bits as in bf16.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ci.accuracy import nano as accuracy
from ci.accuracy.report import Row, judge, markdown, thresholds
from sglang_longcat.__main__ import main
from sglang_longcat.assets import nano
from sglang_longcat.testing.tiny import write_tiny
from tests.harness import engine
from tests.model.dequantised import dequantised
from tests.model.scoring import Oracle, assert_same
from tests.model.test_packed import NATS, SIZES, answers_of

WIDE = 5.0  # times what is allowed, as in test_nano
ALLOWED = 0.03  # of the perplexity in bf16
MISTAKES = ("identity experts times 1", "no EOS rule", "bigrams one token late")


@pytest.mark.parametrize("flags", [[], ["--asymmetric", "--kv-b-proj", "--group-size", "64"]])
def test_tiny(flags: list[str], tmp_path: Path) -> None:
    """Red if a server reads other weights than those that the tool reported the error of."""
    out = tmp_path / "out"
    assert main(["quantize", str(write_tiny(tmp_path / "tiny", SIZES)), str(out), *flags]) == 0
    with engine(out) as llm:
        assert_same(answers_of(llm), Oracle(dequantised(out, tmp_path / "meaning")), nats=NATS)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LongCat-nano in 4 bits. Its widths have no larger common group size than 32."""
    out = tmp_path_factory.mktemp("nano") / "int4"
    assert main(["quantize", str(nano()), str(out), "--group-size", "32"]) == 0
    return out


@pytest.fixture(scope="module")
def meaning(small: Path) -> Path:
    return dequantised(small, small.with_name("meaning"))


@pytest.fixture(scope="module")
def text() -> accuracy.Text:
    return accuracy.Text.of(nano())


@pytest.fixture(scope="module")
def oracle(meaning: Path, text: accuracy.Text) -> accuracy.Oracle:
    return accuracy.Oracle.of(meaning, text)


def gates(measured: dict[str, float], name: str) -> list[Row]:
    """The engine's distance to the oracle of the same weights, and the perplexity to bf16's."""
    limits: dict[str, Any] = thresholds("nano", "float32")
    limits = {gate: limits[gate] for gate in ("perplexity", "mean_gap", "max_gap", "decode_gap")}
    width = ALLOWED * limits["perplexity"]["measured"]
    middle = limits["perplexity"]["measured"]
    limits["perplexity"] |= {"low": middle - width, "high": middle + width}
    rows = judge(measured, limits, prefix=name)
    print(f"\n{markdown(rows)}")
    return rows


def test_nano(small: Path, text: accuracy.Text, oracle: accuracy.Oracle) -> None:
    """Red if 4 bits cost LongCat-nano more than 3 % of its perplexity, or if the engine gives its
    4-bit weights other numbers than the oracle."""
    with engine(small, max_total_tokens=16384) as llm:
        rows = gates(accuracy.measure(llm.generate, text, oracle), "nano int4")
    assert all(row.passed for row in rows), markdown(rows)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_known_mistakes(
    meaning: Path, text: accuracy.Text, oracle: accuracy.Oracle, mistake: str
) -> None:
    """Red if a wrong model could pass for the error of 4 bits."""
    semantics = accuracy.MISTAKES[mistake]
    rows = gates(accuracy.measure_mistake(meaning, text, oracle, semantics), mistake)
    of = {row.gate.rpartition(" ")[2]: row.excess for row in rows}
    assert of["max_gap"] > WIDE
    assert of["mean_gap"] > WIDE

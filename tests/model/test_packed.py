"""4-bit checkpoints on the CPU engine against the oracle, which reads what they mean, unquantised.

Loaded, fused, sharded and absorbed as on a GPU, but multiplied in the activations' dtype, so fp32
differs from the oracle by the order of sums alone. Each group has a scale of its own, spread over a
factor of four.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sglang_longcat.testing.packed import Scheme, meaning_of, write_packed
from sglang_longcat.testing.tiny import TinyOptions
from tests.harness import engine
from tests.model.scoring import Answer, Oracle, ask, assert_same, text

PROMPTS = [text(length, seed=1300 + length) for length in (1, 2, 9, 130)]
SIZES = TinyOptions(mtp=False, experts=8, zero_experts=4)
NATS = 3e-4  # as for block FP8, which is widened in the same way
VISIBLE = 0.05  # nats by which the mildest mistake below moves some logprob
BF16_MEAN_NATS = 0.1  # see test_engine_gpu

AUTO_ROUND = Scheme("auto-round")
SCHEMES = {
    "auto-round": AUTO_ROUND,
    "auto-round-zeros": Scheme("auto-round", 64, symmetric=False),
    "auto-round-awq": Scheme("auto-round-awq", symmetric=False),
    "auto-round-experts": Scheme("auto-round", left_out=("self_attn", "mlps")),
    "gptq": Scheme("gptq", 32),
    "gptq-dense": Scheme("gptq", left_out=("experts",)),
    "awq": Scheme("awq", symmetric=False),
    "awq-experts": Scheme("awq", 64, symmetric=False, left_out=("self_attn",)),
    "compressed-tensors": Scheme("compressed-tensors", 32),
    "compressed-tensors-zeros": Scheme("compressed-tensors", 64, symmetric=False),
    "compressed-tensors-mlps": Scheme("compressed-tensors", left_out=("self_attn", "kv_b_proj")),
}


@pytest.fixture(scope="module")
def auto_round(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packed(tmp_path_factory.mktemp("packed") / "tiny", AUTO_ROUND, SIZES)


@pytest.fixture(scope="module")
def zeros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scheme = SCHEMES["compressed-tensors-zeros"]
    return write_packed(tmp_path_factory.mktemp("zeros") / "tiny", scheme, SIZES)


def answers_of(llm: Any) -> list[Answer]:
    return ask(llm, PROMPTS, logprobs_from=0, max_new_tokens=4)


@pytest.mark.parametrize("name", SCHEMES)
def test_formats(name: str, tmp_path: Path) -> None:
    """Red if a format is read in another order, or if a module is taken for quantised that is not,
    or the other way round."""
    path = write_packed(tmp_path / "tiny", SCHEMES[name], SIZES)
    with engine(path) as llm:
        assert_same(answers_of(llm), Oracle(meaning_of(path)), nats=NATS)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({"tp_size": 2}, id="tp2"),
        pytest.param({"tp_size": 2, "ep_size": 2}, id="tp2-ep2"),
    ],
)
def test_ranks(auto_round: Path, zeros: Path, flags: dict[str, Any]) -> None:
    """Red if a rank gets the values, scales or zero points of another one, or of other experts."""
    for path in (auto_round, zeros):
        with engine(path, **flags) as llm:
            assert_same(answers_of(llm), Oracle(meaning_of(path)), nats=NATS)


def test_bf16(auto_round: Path) -> None:
    """Red if the dtype that a user gets by default does not start, or mixes dtypes."""
    oracle = Oracle(meaning_of(auto_round))
    with engine(auto_round, dtype="bfloat16") as llm:
        gaps = [gap for answer in answers_of(llm) for gap in oracle.gaps(answer)]
    assert sum(gaps) / len(gaps) < BF16_MEAN_NATS


@pytest.mark.parametrize("mtp", [False, True], ids=["bf16-draft", "4-bit-draft"])
def test_draft(tmp_path: Path, mtp: bool) -> None:
    """Red if the MTP layer is built quantised where the checkpoint has it in bf16, or the other way
    round. AutoRound's config.json names the layers that it quantised, GPTQ's says nothing."""
    for method in ("auto-round", "gptq"):
        scheme = Scheme(method, mtp=mtp)
        path = write_packed(tmp_path / method, scheme, replace(SIZES, mtp=True))
        flags = {"speculative_algorithm": "NEXTN", "speculative_num_steps": 2}
        flags |= {"speculative_eagle_topk": 1, "speculative_num_draft_tokens": 3}
        with engine(path, **flags) as llm:
            assert_same(answers_of(llm), Oracle(meaning_of(path)), nats=NATS)


def test_update(auto_round: Path, tmp_path: Path) -> None:
    """Red if anything computed from the weights outlives them (the absorbed kv_b, a dequantised
    copy)."""
    other = write_packed(tmp_path / "other", AUTO_ROUND, replace(SIZES, seed=1))
    with engine(auto_round, tp_size=2) as llm:
        for path in (other, auto_round):
            done, message, _ = llm.call("update_weights_from_disk", str(path))
            assert done, message
            assert_same(answers_of(llm), Oracle(meaning_of(path)), nats=NATS)

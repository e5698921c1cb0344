"""Block-FP8 weights on the CPU engine against the fp32 oracle, which dequantises them by itself.

Fused, sharded and absorbed as on a GPU, but multiplied in the activations' dtype, so fp32 differs
from the oracle by the order of sums alone. The scales are spread over a factor of four, block by
block: as a random checkpoint has them they are all alike, and any order of them gives the same
logprobs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_longcat.checkpoint.headers import CheckpointError
from sglang_longcat.checkpoint.reader import CheckpointReader
from sglang_longcat.config import LongcatConfig
from sglang_longcat.reference.load import SCALE_SUFFIX, Checkpoint
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import engine
from tests.model.scoring import Answer, Oracle, ask, assert_same, text

PROMPTS = [text(length, seed=1100 + length) for length in (1, 2, 9, 130)]
PLAIN = TinyOptions(mtp=False, experts=8, zero_experts=4)
SPREAD = 2.0  # the largest factor on a scale, and one over the smallest
NATS = 3e-4  # 5e-5 seen
VISIBLE = 1.0  # nats by which a misplaced scale moves some logprob
BF16_MEAN_NATS = 0.1  # see test_engine_gpu; 0.03 seen


def write_fp8(path: Path, *, seed: int = 0) -> Path:
    """A small FP8 checkpoint whose blocks all have scales of their own."""
    write_tiny(path, replace(PLAIN, fp8=True, seed=seed))
    draw = torch.Generator().manual_seed(seed)
    for shard in sorted(path.glob("*.safetensors")):
        tensors = load_file(shard)
        for name in sorted(tensors):
            if name.endswith(SCALE_SUFFIX):
                exponent = 2 * torch.rand(tensors[name].shape, generator=draw) - 1
                tensors[name] *= SPREAD**exponent
        save_file(tensors, shard, metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fp8(tmp_path_factory.mktemp("fp8") / "tiny")


@pytest.fixture(scope="module")
def fp8_oracle(fp8: Path) -> Oracle:
    return Oracle(fp8)


def answers_of(llm: Any) -> list[Answer]:
    return ask(llm, PROMPTS, logprobs_from=0, max_new_tokens=4)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({}, id="tp1"),
        pytest.param({"tp_size": 2}, id="tp2"),
        pytest.param({"tp_size": 2, "ep_size": 2}, id="tp2-ep2"),
    ],
)
def test_fp32(fp8: Path, fp8_oracle: Oracle, flags: dict[str, Any]) -> None:
    """Red if an FP8 weight or scale is lost, fused in another order, given to the wrong rank or
    expert, or absorbed with another scale than its own."""
    with engine(fp8, **flags) as llm:
        assert_same(answers_of(llm), fp8_oracle, nats=NATS)


def test_bf16(fp8: Path, fp8_oracle: Oracle) -> None:
    """Red if the dtype that a user gets by default does not start, or mixes dtypes."""
    with engine(fp8, dtype="bfloat16") as llm:
        gaps = [gap for answer in answers_of(llm) for gap in fp8_oracle.gaps(answer)]
    assert sum(gaps) / len(gaps) < BF16_MEAN_NATS


def test_update(fp8: Path, fp8_oracle: Oracle, tmp_path: Path) -> None:
    """Red if anything computed from the weights outlives them (the absorbed kv_b, a widened copy),
    or if unquantised weights are let in beside the scales of the FP8 ones."""
    other = write_fp8(tmp_path / "other", seed=1)
    plain = write_tiny(tmp_path / "plain", PLAIN)
    with engine(fp8, tp_size=2) as llm:
        for path, expected in ((other, Oracle(other)), (fp8, fp8_oracle)):
            done, message, _ = llm.call("update_weights_from_disk", str(path))
            assert done, message
            assert_same(answers_of(llm), expected, nats=NATS)
        done, message, _ = llm.call("update_weights_from_disk", str(plain))
        assert not done
        assert "weight_scale_inv" in message
        assert_same(answers_of(llm), fp8_oracle, nats=NATS)


Read = Callable[[str], torch.Tensor]


def turned(module: str) -> Callable[[Read, str], torch.Tensor]:
    """The rows of blocks of those modules' scales in reverse order."""
    return lambda read, name: read(name).flip(0) if module in name else read(name)


def exchanged(pattern: str, partner: Callable[[str], str]) -> Callable[[Read, str], torch.Tensor]:
    """The scales of another module: `partner` of what `pattern` matches in the name."""
    return lambda read, name: read(re.sub(pattern, lambda match: partner(match[0]), name))


MISPLACED = {
    "q_a": turned("q_a_proj"),
    "q_b": turned("q_b_proj"),
    "kv_a": turned("kv_a_proj"),
    "kv_b": turned("kv_b_proj"),
    "o": turned("o_proj"),
    "down": turned("down_proj"),
    "gate-up": exchanged(
        "gate_proj|up_proj", {"gate_proj": "up_proj", "up_proj": "gate_proj"}.__getitem__
    ),
    "experts": exchanged(r"(?<=experts\.)\d+", lambda number: str(int(number) ^ 1)),
    "attentions": exchanged(r"(?<=self_attn\.)\d", lambda number: str(1 - int(number))),
}


@pytest.mark.parametrize("where", MISPLACED)
def test_misplaced_scales_are_visible(
    fp8: Path, fp8_oracle: Oracle, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Red if this checkpoint no longer tells the right scales from others, in which case the
    comparisons above would pass with any of them."""
    right = Checkpoint.read

    def read(self: Checkpoint, name: str) -> torch.Tensor:
        if not name.endswith(SCALE_SUFFIX):
            return right(self, name)
        return MISPLACED[where](lambda other: right(self, other), name)

    monkeypatch.setattr(Checkpoint, "read", read)
    tokens = PROMPTS[-1]
    table = fp8_oracle.logits(tuple(tokens)).log_softmax(dim=-1)
    logprobs = {i: table[i - 1, tokens[i]].item() for i in range(1, len(tokens))}
    assert Oracle(fp8).gap(Answer(tokens, [], logprobs)) > VISIBLE


def test_each_scale_is_needed(fp8: Path) -> None:
    """Red if an FP8 weight without its scale gets past the loader: it would be served unscaled."""
    stored: dict[str, torch.Tensor] = {}
    for shard in fp8.glob("*.safetensors"):
        stored |= load_file(shard)
    lost = "model.layers.0.self_attn.1.kv_b_proj.weight_scale_inv"
    del stored[lost]
    tables = SimpleNamespace(load=lambda *_: None)
    ignored = SimpleNamespace(tables=tables, load_projection=lambda *_: None)
    reader = CheckpointReader(LongcatConfig.from_dir(fp8), fp8)
    with pytest.raises(CheckpointError, match=re.escape(lost)):
        list(reader.feed(cast(Any, ignored), stored.items()))

"""4-bit checkpoints on the CPU engine against the oracle, which reads what they mean, unquantised.

Loaded, fused, sharded and absorbed as on a GPU, but multiplied in the activations' dtype, so fp32
differs from the oracle by the order of sums alone. Each group has a scale of its own, spread over a
factor of four.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_longcat.checkpoint import packing
from sglang_longcat.checkpoint.packing import PackedWeight
from sglang_longcat.config import LongcatConfig
from sglang_longcat.quantisation.packed import PackedFormat
from sglang_longcat.reference import ReferenceModel
from sglang_longcat.testing.engine_flags import nextn
from sglang_longcat.testing.packed import Scheme, meaning_of, pack_checkpoint, write_packed
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import engine
from tests.model.drafting import Drafter, predictable
from tests.model.scoring import Answer, Oracle, ask, assert_same, text
from tests.model.test_speculative import accepted, assert_drafted

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


DRAFTS = {
    "auto-round-bf16": Scheme("auto-round"),
    "auto-round-4-bit": Scheme("auto-round", mtp=True),
    "gptq-bf16": Scheme("gptq"),
    "gptq-4-bit": Scheme("gptq", mtp=True),
    "gptq-4-bit-in-part": Scheme("gptq", mtp=True, left_out=("eh_proj", "kv_b_proj")),
}


@pytest.mark.parametrize("name", DRAFTS)
def test_draft(tmp_path: Path, name: str) -> None:
    """Red if the MTP layer is built quantised where the checkpoint has it in bf16, or the other way
    round, or if it drafts other tokens than the oracle's. AutoRound's config.json names the layers
    that it quantised, GPTQ's says nothing."""
    plain = write_tiny(tmp_path / "plain", replace(SIZES, mtp=True))
    path = pack_checkpoint(predictable(plain, tmp_path / "packed"), DRAFTS[name])
    prompts = [text(length, seed=length) for length in (2, 5, 11)]
    with engine(path, **nextn(2)) as llm:
        answers = ask(llm, prompts, max_new_tokens=20)
    assert_same(answers, Oracle(meaning_of(path)), nats=NATS)
    reference = ReferenceModel.from_checkpoint(meaning_of(path))
    assert_drafted(answers, Drafter(reference), steps=2)
    assert sum(accepted(answer)[2] for answer in answers), "no window was right"


def honest(patch: pytest.MonkeyPatch, stored: PackedFormat) -> PackedFormat:
    return stored


def other_order(patch: pytest.MonkeyPatch, stored: PackedFormat) -> PackedFormat:
    """The highest bits first."""
    right = packing.unpack
    patch.setattr(
        packing,
        "unpack",
        lambda words, dim: (
            right(words, dim).unflatten(dim, (-1, 8)).flip(dim + 1).flatten(dim, dim + 1)
        ),
    )
    return stored


def zero_off_by_one(patch: pytest.MonkeyPatch, stored: PackedFormat) -> PackedFormat:
    """GPTQ's second version for its first one."""
    return replace(stored, zero_offset=0)


def one_scale_doubled(patch: pytest.MonkeyPatch, stored: PackedFormat) -> PackedFormat:
    """Of one group of 16 outputs of one of the 32 layers of an expert."""
    right = packing.dequantise

    def dequantise(weight: PackedWeight, group_size: int) -> torch.Tensor:
        if weight.scale.shape[0] == SIZES.expert_ffn:
            weight.scale[:16, 1] *= 2
        return right(weight, group_size)

    patch.setattr(packing, "dequantise", dequantise)
    return stored


def test_update(auto_round: Path, tmp_path: Path) -> None:
    """Red if anything computed from the weights outlives them (the absorbed kv_b, a dequantised
    copy), or if files with a wrong number overwrite a part before it is found."""
    other = write_packed(tmp_path / "other", AUTO_ROUND, replace(SIZES, seed=1))
    broken = with_one_scale(other, tmp_path / "broken", float("nan"))
    with engine(auto_round, tp_size=2) as llm:
        done, message, _ = llm.call("update_weights_from_disk", str(broken))
        assert not done
        assert f"{LAST}.scales has 1 scales that are NaN" in message
        assert_same(answers_of(llm), Oracle(meaning_of(auto_round)), nats=NATS)
        for path in (other, auto_round):
            done, message, _ = llm.call("update_weights_from_disk", str(path))
            assert done, message
            assert_same(answers_of(llm), Oracle(meaning_of(path)), nats=NATS)


LAST = "model.layers.1.self_attn.1.q_b_proj"  # of the last layer: all others are read before it


def with_one_scale(path: Path, to: Path, scale: float) -> Path:
    shutil.copytree(path, to)
    for file in to.glob("*.safetensors"):
        tensors = load_file(file)
        if f"{LAST}.scales" in tensors:
            tensors[f"{LAST}.scales"][0, 0] = scale
            save_file(tensors, file, metadata={"format": "pt"})
    return to


def misread(
    path: Path, to: Path, mistake: Callable[[pytest.MonkeyPatch, PackedFormat], PackedFormat]
) -> Path:
    """What `path` means to our reader if it makes this mistake, as an unquantised checkpoint."""
    quant = LongcatConfig.from_dir(path).quant
    assert quant is not None
    assert quant.packed is not None
    shutil.copytree(meaning_of(path), to)
    packed = {n: t for file in path.glob("*.safetensors") for n, t in load_file(file).items()}
    with pytest.MonkeyPatch.context() as patch:
        stored = mistake(patch, quant.packed)
        for file in to.glob("*.safetensors"):
            tensors = load_file(file)
            for name in tensors.keys() - packed.keys():
                module = name.removesuffix("weight")
                parts = {
                    n.removeprefix(module): t for n, t in packed.items() if n.startswith(module)
                }
                weight = packing.standard(parts, stored)
                tensors[name] = packing.dequantise(weight, stored.group_size).contiguous()
            save_file(tensors, file, metadata={"format": "pt"})
    return to


@pytest.mark.parametrize(
    ("mistake", "visible"),
    [(honest, False), (other_order, True), (zero_off_by_one, True), (one_scale_doubled, True)],
)
def test_mistakes_are_visible(
    tmp_path: Path,
    mistake: Callable[[pytest.MonkeyPatch, PackedFormat], PackedFormat],
    visible: bool,
) -> None:
    """Red if such a checkpoint no longer tells the right reading from a wrong one, in which case
    the comparisons above would pass with either; or if our reader reads another value anywhere."""
    path = write_packed(tmp_path / "tiny", SCHEMES["auto-round-zeros"], SIZES)
    tokens = PROMPTS[-1]
    table = Oracle(meaning_of(path)).logits(tuple(tokens)).log_softmax(dim=-1)
    logprobs = {i: table[i - 1, tokens[i]].item() for i in range(1, len(tokens))}
    gap = Oracle(misread(path, tmp_path / "misread", mistake)).gap(Answer(tokens, [], logprobs))
    assert gap > VISIBLE if visible else gap == 0

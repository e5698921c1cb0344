"""Quantised activations on their way from producers to block-FP8 layers, in whole CPU engines.

The engines load a plugin in which torch stands in for the GPU's libraries: producers quantise by
the reference, and a layer that gets no pair quantises its input itself, as on a GPU. So an engine
with pairs and one without (LONGCAT_SGLANG_OPS) mean the same, and both print what each layer got.
Owns: that pairs arrive, and are of the right activation. The kernels are tests/kernels' business,
which layers take part on a GPU is tests/unit/layers/test_fp8_inputs.py's.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT
from tests.harness import engine
from tests.model.scoring import Answer, ask, text
from tests.model.test_fp8 import write_fp8

PLUGIN = """
import os

import torch
from benchmarks.kernels.fp8_producers import add_norm, swiglu
from longcat_kernels.fp8_layout import quantise, widen
from sglang_longcat.cpu.fp8 import TorchBlockFp8Experts, TorchBlockFp8Linear
from sglang_longcat.layers import attention, fp8_inputs as fp8
from sglang_longcat.plugin import register as register_longcat

def read(name, pair, x):
    kind = "plain" if pair is None else "pair"
    os.write(1, f"\\ninput of {name} {kind}\\n".encode())  # whole lines, of all ranks
    return widen(quantise(x) if pair is None else pair).to(torch.float32)

def name(layer):
    return f"{type(layer).__name__}-{layer.input_size}-{layer.output_size}"

class Linear(TorchBlockFp8Linear):
    def apply(self, layer, x, bias=None):
        pair = x if isinstance(x, tuple) else fp8.pair_of(x)
        return super().apply(layer, read(name(layer), pair, x), bias)

run_experts = TorchBlockFp8Experts.apply

def experts(self, layer, dispatch_output):
    x = read("experts", dispatch_output.hidden_states_pre_quant, dispatch_output.hidden_states)
    return run_experts(self, layer, dispatch_output._replace(hidden_states=x))

def normed_pair(x, residual, weight, eps):
    normed, total = add_norm(x, residual, weight, eps)
    residual.copy_(total)
    return normed, quantise(normed)

def register():
    register_longcat()  # whichever of the two plugins SGLang loads first
    attention.use_mla_prologue = lambda *args: True
    fp8.Fp8LinearMethod, fp8.Fp8PairMethod = TorchBlockFp8Linear, Linear
    fp8.uses_deep_gemm = fp8._is_gpu_bf16 = fp8._experts_accept_pair = lambda _: True
    fp8.add_norm_quantise = normed_pair
    fp8.per_token_group_quant = lambda x, **_: quantise(swiglu(x))
    TorchBlockFp8Experts.apply = experts
"""
POINT = "[sglang.srt.plugins]\nforced_pairs = forced_pairs:register\n"
PROMPTS = [text(length, seed=1500 + length) for length in (1, 9, 130)]
UNFUSED = {"LONGCAT_SGLANG_OPS": "fp8_norm,fp8_query,fp8_swiglu,fp8_values"}
# 0 seen. Sums in another order would now and then round another way to fp8, and move a logprob by
# more than this: then the references have left SGLang's formulas.
NATS = 1e-3


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fp8(tmp_path_factory.mktemp("fp8") / "tiny")


@pytest.fixture(scope="module")
def forced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of engines that find the plugin."""
    path = tmp_path_factory.mktemp("plugin")
    (path / "forced_pairs.py").write_text(PLUGIN)
    info = path / "forced_pairs-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: forced-pairs\nVersion: 0\n")
    (info / "entry_points.txt").write_text(POINT)
    return {"PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}


def run(path: Path, env: dict[str, str], **flags: Any) -> tuple[list[Answer], Counter[str]]:
    with engine(path, env=env, **flags) as llm:
        answers = ask(llm, PROMPTS, logprobs_from=0, max_new_tokens=4)
        lines = [line for line in llm.log.splitlines() if "input of " in line]
    return answers, Counter(line.rpartition("input of ")[2] for line in lines)


# Of the tiny checkpoint: q_a and kv_a, q_b, gate and up, down. Nobody quantises for o.
LATENT, QUERY, GATE_UP, DOWN = (
    "ReplicatedLinear-768-960",
    "ColumnParallelLinear-384-1536",
    "MergedColumnParallelLinear-768-1536",
    "RowParallelLinear-768-768",
)


@pytest.mark.parametrize(
    "flags",
    [pytest.param({}, id="tp1"), pytest.param({"tp_size": 2, "ep_size": 2}, id="tp2-ep2")],
)
def test_pairs_mean_what_they_replace(
    fp8: Path, forced: dict[str, str], flags: dict[str, Any]
) -> None:
    """Red if a pair is lost between a norm and its layer (SGLang's boundaries hand on another
    tensor), belongs to another activation, or is taken by a layer that reads something else."""
    answers, inputs = run(fp8, forced, **flags)
    unfused, before = run(fp8, forced | UNFUSED, **flags)
    assert not any(key.endswith("pair") for key in before)
    forwards = inputs[f"{LATENT} plain"]  # the first layer's first norm has no residual to add
    assert forwards > 0
    assert inputs[f"{LATENT} pair"] == 3 * forwards  # two layers of two attentions
    for name, count in ((QUERY, 4), (GATE_UP, 4), (DOWN, 4), ("experts", 2)):
        assert (inputs[f"{name} pair"], inputs[f"{name} plain"]) == (count * forwards, 0)
    for got, wanted in zip(answers, unfused, strict=True):
        shared = range(1, len(got.prompt))  # greedy tokens may part ways at a tie
        assert all(abs(got.logprobs[i] - wanted.logprobs[i]) < NATS for i in shared)

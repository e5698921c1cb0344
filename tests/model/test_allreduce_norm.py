"""Sums over ranks that the norms make which read them, on gloo ranks against the oracle.

flashinfer's kernel needs GPUs. Here the engines load a plugin that says that the kernel applies,
and computes the same in torch. So everything around the kernel is what runs on GPUs: which stage
hands which sum on, over which ranks, with which residual. The plugin also counts, and prints the
numbers of each forward.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_longcat.layers import allreduce_norm
from sglang_longcat.testing.engine_flags import nextn
from sglang_longcat.testing.tiny import TinyOptions
from tests.harness import engine
from tests.model import injected
from tests.model.scoring import Answer, Oracle, ask, assert_same

PLUGIN = """
import os
from collections import Counter

import torch
from sglang.srt.distributed.parallel_state import GroupCoordinator
from sglang.srt.layers import flashinfer_comm_fusion as wrapper
from sglang.srt.layers.dp_attention import is_dp_attention_enabled
from sglang.srt.layers.layer_boundary import exit
from sglang.srt.layers.layer_boundary.fusions import allreduce
from sglang.srt.layers.layer_boundary.residual import add_norm
from sglang.srt.runtime_context import get_parallel

from sglang_longcat.plugin import register as register_longcat

counts = Counter()
alone = GroupCoordinator.all_reduce

def applies(batch_size):
    return 0 < batch_size <= 2048 and not is_dp_attention_enabled()

def fused(input_tensor, residual, weight, eps, max_token_num, use_attn_tp_group):
    counts["fused"] += 1
    group = wrapper.resolve_fusion_group(use_attn_tp_group=use_attn_tp_group)[2]
    total = residual + alone(group, input_tensor.clone())
    return torch.nn.functional.rms_norm(total, weight.shape, weight, eps), total

def count(group, x):
    counts["alone"] += group.world_size > 1
    return alone(group, x)

def register():
    register_longcat()  # whichever of the two plugins SGLang loads first
    GroupCoordinator.all_reduce = count
    from sglang_longcat.layers import allreduce_norm
    from sglang_longcat.models import longcat_flash

    if rows := os.environ["MOST_ROWS"]:
        allreduce_norm.max_rows = lambda: int(rows)
        wrapper.flashinfer_allreduce_residual_rmsnorm = fused
        for module in (exit, allreduce, add_norm, allreduce_norm):
            module.flashinfer_ar_fusion_applies = applies
    final = longcat_flash.final_norm

    def counted(hidden, forward_batch, norm):
        result = final(hidden, forward_batch, norm)
        if get_parallel().tp_rank == 0:
            print(f"sums: {counts['fused']} fused, {counts['alone']} alone", flush=True)
        counts.clear()
        return result

    longcat_flash.final_norm = counted
"""
LAYERS = TinyOptions().layers


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return injected.plugin(tmp_path_factory.mktemp("plugin"), "counted_sums", PLUGIN)


def run(
    path: Path, prompts: list[list[int]], env: dict[str, str], **flags: Any
) -> tuple[list[Answer], set[tuple[int, int]]]:
    """The answers, and what was seen of (sums fused, sums alone) in a forward."""
    with engine(path, env=env, timeout=400, **flags) as llm:
        answers = ask(llm, prompts, logprobs_from=0)
        counts = re.findall(r"sums: (\d+) fused, (\d+) alone", llm.log)
    return answers, {(int(fused), int(alone)) for fused, alone in counts}


@pytest.mark.parametrize(
    ("flags", "rows", "sums"),
    [
        pytest.param({"tp_size": 2}, 2048, (4 * LAYERS + 1, 0), id="tp2"),
        pytest.param({"tp_size": 2, "ep_size": 2}, 2048, (4 * LAYERS + 1, 0), id="tp2-ep2"),
        pytest.param({"tp_size": 4, "ep_size": 4}, 2048, (4 * LAYERS + 1, 0), id="tp4-ep4"),
        # With experts split both ways SGLang sums FFN outputs where they arise.
        pytest.param(
            {"tp_size": 4, "ep_size": 2}, 2048, (2 * LAYERS + 1, 2 * LAYERS), id="tp4-ep2"
        ),
        pytest.param({"tp_size": 2}, "", (0, 4 * LAYERS + 1), id="tp2-off"),
        pytest.param({"tp_size": 2, "attn_dp_size": 2}, 2048, None, id="tp2-dp2"),
    ],
)
def test_every_sum_in_one_kernel(
    tiny: Path,
    together: dict[str, Answer],
    oracle: Oracle,
    plugin: dict[str, str],
    flags: dict[str, Any],
    rows: int | str,
    sums: tuple[int, int] | None,
) -> None:
    """Red if a boundary sums before it hands on, if a sum is taken twice or over other ranks, if
    the embedding's residual is not zero, or if attention DP takes a kernel."""
    prompts = [answer.prompt for answer in together.values()]
    answers, counts = run(tiny, prompts, plugin | {"MOST_ROWS": str(rows)}, **flags)
    assert_same(answers, oracle)
    if sums is None:
        assert {fused for fused, _ in counts} == {0}
    else:
        assert counts == {sums}


def test_more_rows_are_summed_alone(
    tiny: Path, together: dict[str, Answer], oracle: Oracle, plugin: dict[str, str]
) -> None:
    """Red if the limit cuts a forward in two: prefills here are longer than 16 rows, decode steps
    are not, and either sums all in one way."""
    prompts = [answer.prompt for answer in together.values()]
    answers, counts = run(tiny, prompts, plugin | {"MOST_ROWS": "16"}, tp_size=2)
    assert_same(answers, oracle)
    assert counts == {(4 * LAYERS + 1, 0), (0, 4 * LAYERS + 1)}


def test_drafts_and_verification(
    tiny: Path, together: dict[str, Answer], oracle: Oracle, plugin: dict[str, str]
) -> None:
    """Red if a draft's sums go into the target's, or a verify window's are left to nobody. Drafts
    fuse attention's sum only; what they count is added to the next forward of the target."""
    some = ("1 tokens", "17 tokens", "200 tokens", "EOS inside")
    prompts = [together[name].prompt for name in some]
    answers, counts = run(tiny, prompts, plugin | {"MOST_ROWS": "2048"}, tp_size=2, **nextn(3))
    assert_same(answers, oracle)
    assert min(fused for fused, _ in counts) >= 4 * LAYERS + 1


@pytest.mark.parametrize(("ranks", "rows"), [(2, 256), (3, 64), (4, 64), (8, 64)])
def test_more_ranks_stop_earlier(monkeypatch: pytest.MonkeyPatch, ranks: int, rows: int) -> None:
    """Red if four GPUs take the kernel for 256 rows, where it loses 4 us of 15."""
    monkeypatch.setattr(allreduce_norm, "get_parallel", lambda: SimpleNamespace(tp_size=ranks))
    monkeypatch.setattr(allreduce_norm, "flashinfer_ar_fusion_applies", lambda rows: True)
    assert allreduce_norm.use_allreduce_norm(torch.empty(rows, 8))
    assert not allreduce_norm.use_allreduce_norm(torch.empty(rows + 1, 8))

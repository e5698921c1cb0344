"""A layer's last sum left to the next norm, through SGLang's layer boundaries, against the oracle.

GPUs leave it in decode steps. Here the engines load a plugin that leaves it in every step and hands
the mixture on in the form that GPUs have; the sum is the kernel's reference. It also counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ci.acceptance.modes import nextn
from sglang_longcat.testing.tiny import TinyOptions
from tests.harness import engine
from tests.model import injected
from tests.model.scoring import Answer, Oracle, ask, assert_same

PLUGIN = """
import dataclasses
from collections import Counter

import torch

from sglang_longcat.plugin import register as register_longcat

counts = Counter()

def register():
    register_longcat()  # whichever of the two plugins SGLang loads first
    from sglang_longcat.layers import deferred_sum
    from sglang_longcat.layers import decoder_layer
    from sglang_longcat.models import longcat_flash

    leave, add, final = decoder_layer.leave, owed.finalize_norm, longcat_flash.final_norm

    def leave_all(mixture, dense):
        slots = torch.zeros(dense.shape[0], 1, dtype=torch.int32)
        return leave(
            dataclasses.replace(mixture, experts=mixture.experts[:, None], expert_ids=slots), dense
        )

    def counted(*args, **options):
        counts["sums"] += 1
        return add(*args, **options)

    def told(hidden, forward_batch, norm):
        result = final(hidden, forward_batch, norm)
        print(f"left: {counts['sums']}", flush=True)
        counts.clear()
        return result

    decoder_layer.leaves_sum = lambda mixture, forward_batch: True
    decoder_layer.leave, owed.finalize_norm = leave_all, counted
    longcat_flash.final_norm = told
"""
LAYERS = TinyOptions().layers


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return injected.plugin(tmp_path_factory.mktemp("plugin"), "left_sums", PLUGIN)


@pytest.mark.parametrize("flags", [{}, nextn(3)], ids=["plain", "drafts"])
def test_every_layer_leaves_its_sum(
    tiny: Path,
    together: dict[str, Answer],
    oracle: Oracle,
    plugin: dict[str, str],
    flags: dict[str, Any],
) -> None:
    """Red if a boundary hands on another tensor, reads it past our norm, or adds the residual
    twice; or if the last layer's sum is not the final norm's."""
    some = ("1 tokens", "17 tokens", "200 tokens", "EOS inside")
    prompts = [together[name].prompt for name in some]
    with engine(tiny, env=plugin, timeout=400, **flags) as llm:
        answers = ask(llm, prompts, logprobs_from=0)
        found = {int(count) for count in re.findall(r"left: (\d+)", llm.log)}
    assert_same(answers, oracle)
    assert found == {LAYERS}

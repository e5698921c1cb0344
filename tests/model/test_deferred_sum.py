"""A layer's last sum, deferred to the next norm through SGLang's boundaries, against the oracle.

On GPUs decode and verify steps defer it. Here the engines load a plugin that defers it in every
step, and hands the mixture on in the form that it has on GPUs. The sum is the kernel's reference.
The plugin also counts.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sglang_longcat.testing.engine_flags import nextn
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

    defer, add, final = decoder_layer.defer, deferred_sum.finalize_norm, longcat_flash.final_norm

    def defer_all(mixture, dense):
        slots = torch.zeros(dense.shape[0], 1, dtype=torch.int32)
        return defer(
            dataclasses.replace(mixture, experts=mixture.experts[:, None], expert_ids=slots), dense
        )

    def counted(*args, **options):
        counts["sums"] += 1
        return add(*args, **options)

    def told(hidden, forward_batch, norm):
        result = final(hidden, forward_batch, norm)
        print(f"deferred: {counts['sums']}", flush=True)
        counts.clear()
        return result

    decoder_layer.use_deferred_sum = lambda mixture, forward_batch: True
    decoder_layer.defer, deferred_sum.finalize_norm = defer_all, counted
    longcat_flash.final_norm = told
"""
LAYERS = TinyOptions().layers


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return injected.plugin(tmp_path_factory.mktemp("plugin"), "deferred_sums", PLUGIN)


@pytest.mark.parametrize("flags", [{}, nextn(3)], ids=["plain", "drafts"])
def test_every_layer_defers_its_sum(
    tiny: Path,
    together: dict[str, Answer],
    oracle: Oracle,
    plugin: dict[str, str],
    flags: dict[str, Any],
) -> None:
    """Red if a boundary hands on another tensor, reads it without our norm, or adds the residual
    twice; or if the final norm does not make the last layer's sum."""
    some = ("1 tokens", "17 tokens", "200 tokens", "EOS inside")
    prompts = [together[name].prompt for name in some]
    with engine(tiny, env=plugin, timeout=400, **flags) as llm:
        answers = ask(llm, prompts, logprobs_from=0)
        counts = {int(count) for count in re.findall(r"deferred: (\d+)", llm.log)}
    assert_same(answers, oracle)
    assert counts == {LAYERS}

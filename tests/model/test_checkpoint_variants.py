"""Every spelling of a checkpoint that is published or was seen in the wild, served and compared.

Owns: variants of config.json and of the files. FP8 weights are in `test_fp8`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import engine
from tests.model.scoring import Answer, Oracle, ask, assert_same, rewritten, text

SECOND_EOS = 777  # in the prompts below, so that a list of EOS ids changes their hashes


def some_prompts() -> list[list[int]]:
    return [text(3, seed=1000), [*text(9, seed=1001), SECOND_EOS, *text(8, seed=1002), 2, 900, 901]]


def served(path: Path, **flags: Any) -> list[Answer]:
    with engine(path, **flags) as llm:
        return ask(llm, some_prompts(), logprobs_from=0)


def oe_names(config: dict[str, Any]) -> None:
    for suffix in ("neighbor_num", "split_num"):
        config[f"oe_{suffix}"] = config.pop(f"emb_{suffix}")
    config["oe_vocab_size_ratio"] = config.pop("ngram_vocab_size_ratio")


EDITS: dict[str, Any] = {
    "oe-names-and-28-attentions": lambda c: (oe_names(c), c.update(num_hidden_layers=4)),
    "nextn-layers": lambda c: c.update(num_nextn_predict_layers=1),
    "two-eos-ids": lambda c: c.update(eos_token_id=[2, SECOND_EOS]),
    "in-tree-model-type": lambda c: c.update(
        model_type="longcat_flash", architectures=["LongcatFlashForCausalLM"]
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_config_spellings(tiny: Path, oracle: Oracle, tmp_path: Path, name: str) -> None:
    """Red if a key is read under one of its names only, if num_hidden_layers (which counts
    attentions) is taken for the layers, or if only the first EOS id of a list ends a text."""
    path = rewritten(tiny, tmp_path / "rewritten", EDITS[name])
    answers = served(path)
    assert_same(answers, Oracle(path))
    changes_the_model = name == "two-eos-ids"
    assert any(oracle.gap(answer) > 0.1 for answer in answers) == changes_the_model


def test_trust_remote_code(tiny: Path, oracle: Oracle) -> None:
    """Red if the published flag takes another road to config or tokenizer."""
    assert_same(served(tiny, trust_remote_code=True), oracle)


def test_no_rope_scaling_and_no_mtp_head(tmp_path: Path) -> None:
    """Red if rope_scaling null ends the start (SGLang's own class fails on it) or still scales the
    softmax, or if a checkpoint without MTP tensors counts as incomplete."""
    path = write_tiny(tmp_path / "plain", TinyOptions(rope_scaling=False, mtp=False))
    assert_same(served(path), Oracle(path))


def test_one_file_without_an_index(tmp_path: Path) -> None:
    """Red if loading or checking relies on model.safetensors.index.json."""
    path = write_tiny(tmp_path / "shards", TinyOptions(layers=1, experts=8, zero_experts=4))
    single = tmp_path / "single"
    rewritten(path, single, lambda config: None)
    tensors: dict[str, torch.Tensor] = {}
    for shard in single.glob("*.safetensors"):
        tensors |= load_file(shard)
        shard.unlink()
    (single / "model.safetensors.index.json").unlink()
    save_file(tensors, single / "model.safetensors", metadata={"format": "pt"})
    assert_same(served(single), Oracle(path))

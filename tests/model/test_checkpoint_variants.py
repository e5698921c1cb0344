"""Every spelling of a checkpoint that is published or was seen in the wild, served and compared.

Owns: config.json variants and FP8 loading. The engine on FP8 weights is in `test_engine_gpu`:
SGLang's FP8 linear layers need AMX on a CPU, and refuse fp32 activations.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from scoring import Answer, Oracle, ask, assert_same, rewritten, text

from harness import engine
from sglang_longcat.checkpoint.headers import CheckpointError
from sglang_longcat.checkpoint.tiny import TinyOptions, write_tiny
from sglang_longcat.config import LongcatConfig
from sglang_longcat.weights import CheckpointReader

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


class Recorder:
    """Stands in for the N-gram embedding: which tables and projections it was given."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}

    def load_table(self, index: int, weight: torch.Tensor) -> None:
        self.loaded[f"model.ngram_embeddings.embedders.{index}.weight"] = weight

    def load_projection(self, index: int, weight: torch.Tensor) -> None:
        self.loaded[f"model.ngram_embeddings.post_projs.{index}.weight"] = weight


def test_block_fp8_on_its_way_to_sglang(tmp_path: Path) -> None:
    """Red if the loader refuses a block-FP8 checkpoint, loses or scales an FP8 weight or its scale,
    or hands SGLang an n-gram tensor or a part of the MTP head."""
    path = write_tiny(tmp_path / "fp8", TinyOptions(fp8=True, layers=1, experts=4, zero_experts=4))
    stored: dict[str, torch.Tensor] = {}
    for shard in path.glob("*.safetensors"):
        stored |= load_file(shard)
    reader, recorder = CheckpointReader(LongcatConfig.from_dir(path), path), Recorder()
    reader.check_files()
    passed = dict(reader.feed(cast(Any, recorder), stored.items()))
    word = passed.pop("model.embed_tokens.word_embed.weight")
    assert torch.equal(word, stored["model.embed_tokens.weight"])
    ours = {
        name for name in stored if name.startswith(("model.mtp.", "model.ngram_", "model.embed"))
    }
    assert passed.keys() == stored.keys() - ours
    assert len(recorder.loaded) == 24
    quantised = [one for one in passed.values() if one.dtype == torch.float8_e4m3fn]
    assert len(quantised) == 2 * 5 + 2 * 3 + 4 * 3  # attentions, dense MLPs, experts
    for name, tensor in (passed | recorder.loaded).items():
        if "a_layernorm" not in name:  # these carry the MLA scale
            assert tensor is stored[name], name


def test_block_fp8_needs_each_scale(tmp_path: Path) -> None:
    """Red if an FP8 weight without its scale gets past the loader: it would be served unscaled."""
    path = write_tiny(tmp_path / "fp8", TinyOptions(fp8=True, layers=1, experts=4, zero_experts=4))
    stored: dict[str, torch.Tensor] = {}
    for shard in path.glob("*.safetensors"):
        stored |= load_file(shard)
    lost = "model.layers.0.self_attn.1.kv_b_proj.weight_scale_inv"
    del stored[lost]
    reader = CheckpointReader(LongcatConfig.from_dir(path), path)
    with pytest.raises(CheckpointError, match=re.escape(lost)):
        list(reader.feed(cast(Any, Recorder()), stored.items()))

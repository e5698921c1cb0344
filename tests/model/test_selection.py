"""Which model class serves a config: ours for LongCat-Flash-Lite, SGLang's own for everything else.

An engine proves it where SGLang's own class starts on a CPU; its sparse attention and its N-gram
embedding do not, so those are proven by how they fail, or on the class alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.harness import HarnessError, engine
from tests.model.scoring import rewritten

IN_TREE = {"model_type": "longcat_flash", "architectures": ["LongcatFlashForCausalLM"]}
SPARSE = {**IN_TREE, "index_topk": 512, "index_n_heads": 8, "index_head_dim": 128}


def without_tables(config: dict[str, Any]) -> None:
    """LongCat-Flash-Chat: the same layers, a plain word embedding."""
    for key in ("emb_neighbor_num", "emb_split_num", "ngram_vocab_size_ratio"):
        del config[key]
    config.update(IN_TREE)


def test_disabled_plugin_leaves_sglang_alone(tiny: Path, tmp_path: Path) -> None:
    """Red if LONGCAT_DISABLE=1 still registers our class, or any part of our CPU support: SGLang's
    own N-gram embedding then fails on the CPU as it does without us. (The published model_type is
    replaced, because SGLang without us stops before it chooses a class.)"""
    path = rewritten(tiny, tmp_path / "in-tree", lambda config: config.update(IN_TREE))
    with (
        pytest.raises(HarnessError) as failure,
        engine(path, env={"LONGCAT_DISABLE": "1"}),
    ):
        pass
    log = str(failure.value)
    assert "sglang/srt/models/longcat_flash.py" in log
    assert "sglang/srt/layers/n_gram_embedding.py" in log
    assert "sglang_longcat/" not in log, "a frame of ours in the failure"


def test_config_without_tables_gets_the_in_tree_class(tiny: Path, tmp_path: Path) -> None:
    """Red if a LongCat-Flash-Chat checkpoint is served by our class, or if our registration breaks
    SGLang's own."""
    path = rewritten(tiny, tmp_path / "chat", without_tables)
    with engine(path) as llm:  # its identity experts need Triton, so it starts and no more
        assert "using SGLang's own model" in llm.log
        assert "is active" not in llm.log
    with engine(tiny) as llm:
        assert "is active" in llm.log


@pytest.mark.parametrize("edit", [without_tables, lambda config: config.update(SPARSE)])
def test_class_of_other_configs(tiny: Path, monkeypatch: pytest.MonkeyPatch, edit: Any) -> None:
    """Red if a sparse-attention config (LongCat-2.0, which has N-gram tables too) or one without
    tables reaches our model class, or does so with fields changed by our config class."""
    from sglang.srt.configs import LongcatFlashConfig
    from sglang.srt.models import longcat_flash as in_tree

    from sglang_longcat.host.hf_config import LongcatConfigForSGLang
    from sglang_longcat.models.longcat_flash import LongcatFlashForCausalLM

    raw = json.loads((tiny / "config.json").read_text())
    edit(raw)
    config = LongcatConfigForSGLang(**raw)
    plain = LongcatFlashConfig(**{k: v for k, v in raw.items() if k != "model_type"}).to_dict()
    assert {k: v for k, v in config.to_dict().items() if k != "is_longcat_lite"} == plain
    monkeypatch.setattr(
        in_tree, "LongcatFlashForCausalLM", lambda config, *args: ("in-tree", config)
    )
    assert LongcatFlashForCausalLM(config) == ("in-tree", config)

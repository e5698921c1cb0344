"""config.json as published, its aliases, and what LongcatConfig refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sglang_longcat.config import ConfigError, LongcatConfig, is_lite

LITE: dict[str, Any] = {
    "vocab_size": 131072,
    "hidden_size": 3072,
    "num_layers": 14,
    "num_hidden_layers": 28,
    "num_attention_heads": 32,
    "ffn_hidden_size": 6144,
    "expert_ffn_hidden_size": 1024,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_theta": 5000000.0,
    "rope_scaling": {"type": "yarn", "factor": 10, "original_max_position_embeddings": 32768},
    "max_position_embeddings": 327680,
    "n_routed_experts": 256,
    "zero_expert_num": 128,
    "zero_expert_type": "identity",
    "moe_topk": 12,
    "routed_scaling_factor": 6.0,
    "emb_neighbor_num": 4,
    "emb_split_num": 4,
    "ngram_vocab_size_ratio": 78,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
}


def read(**changes: Any) -> LongcatConfig:
    """LITE with `changes`; a value of ... removes the key."""
    return LongcatConfig.from_dict({k: v for k, v in (LITE | changes).items() if v is not ...})


def test_published_sizes() -> None:
    config = read()
    assert config.num_layers == 14  # not the 28 attention sub-blocks
    assert config.router_logits == 384
    assert config.q_scale == pytest.approx(2**0.5)
    assert config.kv_scale == pytest.approx(6**0.5)
    assert config.eos_token_ids == (2,)
    ngram = config.ngram
    assert ngram is not None
    assert (ngram.tables, ngram.width) == (12, 256)
    assert ngram.rows[:2] == (10_223_617, 10_223_619)
    assert ngram.rows[-1] == 10_223_639
    assert [ngram.order(table) for table in range(12)] == [2] * 4 + [3] * 4 + [4] * 4


ALIASES: dict[str, dict[str, Any]] = {
    "oe_names": {
        "emb_neighbor_num": ...,
        "emb_split_num": ...,
        "ngram_vocab_size_ratio": ...,
        "oe_neighbor_num": 4,
        "oe_split_num": 4,
        "oe_vocab_size_ratio": 78,
    },
    "null_is_absent": {"oe_vocab_size_ratio": None, "oe_neighbor_num": None},
    "only_num_hidden_layers": {"num_layers": ..., "num_hidden_layers": 14},
    "hf_ffn_names": {
        "ffn_hidden_size": ...,
        "expert_ffn_hidden_size": ...,
        "intermediate_size": 6144,
        "moe_intermediate_size": 1024,
    },
    "eos_list": {"eos_token_id": [2]},
    "sglang_config_class": {
        "num_layers": ...,
        "num_hidden_layers": 14,
        "ngram_vocab_size_ratio": ...,
        "emb_neighbor_num": ...,
        "emb_split_num": ...,
        "ngram_embedding_m": 78 * 131072,
        "ngram_embedding_n": 4,
        "ngram_embedding_k": 4,
    },
}


@pytest.mark.parametrize("changes", ALIASES.values(), ids=ALIASES)
def test_other_spellings_mean_the_same(changes: dict[str, Any]) -> None:
    assert read(**changes) == read()


def test_several_eos_ids() -> None:
    assert read(eos_token_id=[2, 7]).eos_token_ids == (2, 7)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": None},
        {"rope_scaling": ...},
        {"rope_scaling": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}},
    ],
    ids=["null", "absent", "default_type"],
)
def test_no_rope_scaling(rope: dict[str, Any]) -> None:
    config = read(**rope)
    assert config.rope_scaling is None
    assert config.rope_theta == 5e6


def test_rope_theta_may_live_in_rope_parameters() -> None:
    yarn = LITE["rope_scaling"] | {"rope_theta": 123.0}
    config = read(rope_scaling=..., rope_theta=..., rope_parameters=yarn)
    assert config.rope_theta == 123.0
    assert config.rope_scaling is not None
    assert config.rope_scaling["factor"] == 10


def test_scales_can_be_off() -> None:
    config = read(mla_scale_q_lora=False, mla_scale_kv_lora=False)
    assert (config.q_scale, config.kv_scale) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 3074}, r"hidden_size 3074 is not divisible .* = 12"),
        ({"zero_expert_type": "copy"}, "zero_expert_type 'copy'.*'identity'"),
        ({"zero_expert_type": ...}, "zero_expert_type None"),
        ({"emb_neighbor_num": 1}, "emb_neighbor_num=1"),
        ({"emb_split_num": ...}, "emb_split_num=None"),
        ({"moe_topk": 385}, "moe_topk 385 exceeds the 384"),
        ({"kv_lora_rank": ...}, "lacks kv_lora_rank"),
        ({"num_layers": ..., "num_hidden_layers": ...}, "lacks num_layers / num_hidden_layers"),
        ({"norm_topk_prob": True}, "norm_topk_prob=true"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=true"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}},
            r"weight_block_size \[128\]",
        ),
    ],
)
def test_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "config.json does not exist; expected that of LongCat-Flash-Lite"),
        ("{broken", "config.json holds no JSON"),
        ("[]", "config.json holds no object, but []"),
        ('{"vocab_size": "1"}', "vocab_size is '1'; expected a positive number"),
    ],
)
def test_unreadable_file(tmp_path: Path, text: str | None, said: str) -> None:
    """Red if it ends in a traceback, or without the file's name and what to do."""
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        LongcatConfig.from_dir(tmp_path)


def test_no_identity_experts_needs_no_type() -> None:
    assert read(zero_expert_num=0, zero_expert_type=...).router_logits == 256


def test_is_lite() -> None:
    without_tables = {k: v for k, v in LITE.items() if k != "ngram_vocab_size_ratio"}
    assert is_lite(LITE)
    assert is_lite(without_tables | {"oe_vocab_size_ratio": 78})
    assert is_lite(without_tables | {"ngram_embedding_m": 78 * 131072})
    assert not is_lite(without_tables)  # LongCat-Flash-Chat
    assert not is_lite(LITE | {"index_topk": 2048})  # sparse attention
    assert read(ngram_vocab_size_ratio=...).ngram is None


def test_ignored_modules_match_whole_components() -> None:
    quant = read(
        quantization_config={
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "ignored_layers": ["lm_head", "layers.1.mlps.0"],
        },
        disable_quant_module=["self_attn"],
    ).quant
    assert quant is not None
    assert quant.is_block_fp8
    assert quant.ignores("lm_head")
    assert quant.ignores("model.layers.1.mlps.0.up_proj")
    assert quant.ignores("model.layers.3.self_attn.1.o_proj")
    assert not quant.ignores("model.layers.11.mlps.0.up_proj")
    assert not quant.ignores("model.layers.1.mlps.1.up_proj")

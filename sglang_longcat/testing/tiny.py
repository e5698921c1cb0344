"""Writes a small random checkpoint in the published layout: config, shards, index, tokenizer.

Owns: the default sizes (which the GPU kernels accept: see TinyOptions), config.json, and the shard
files. `values` draws the numbers, and `checkpoint.layout` has the names and shapes. The same
options give the same bytes on any machine, with any number of threads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sglang_longcat.checkpoint.generation import generation_config
from sglang_longcat.checkpoint.headers import INDEX_NAME
from sglang_longcat.checkpoint.layout import SCALE_SUFFIX, expected_tensors, is_quantised
from sglang_longcat.config import LongcatConfig
from sglang_longcat.testing.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    Vocabulary,
    build_vocabulary,
    write_tokenizer,
)
from sglang_longcat.testing.values import block_fp8, tensor_value

FP8_BLOCK = 128
_YARN_FACTOR = 8
_YARN: dict[str, Any] = {
    "type": "yarn",
    "rope_type": "yarn",
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1,
    "mscale_all_dim": 1,
}


@dataclass(frozen=True)
class TinyOptions:
    """Sizes and variants. The defaults make 149 MB.

    GPU kernels require: kv_lora 512, nope 128, rope 64, v 128 (FA3 and FlashInfer MLA); hidden a
    multiple of 256 (in-tree identity-expert kernel); every other width a multiple of 256, so that
    block FP8 (128) still divides at TP2; hidden / ((neighbors - 1) * splits) integral.
    """

    seed: int = 0
    layers: int = 2
    hidden: int = 768
    heads: int = 8
    q_lora: int = 384
    kv_lora: int = 512
    nope: int = 128
    rope: int = 64
    v: int = 128
    ffn: int = 768
    expert_ffn: int = 256
    experts: int = 32
    zero_experts: int = 16
    topk: int = 6
    vocab: int = 2048
    neighbors: int = 4  # n of the n-grams
    splits: int = 4  # k hash functions per order
    ratio: int = 4  # table rows per vocabulary entry
    max_position: int = 4096
    shard_mb: int = 64
    rope_scaling: bool = True
    eos_list: bool = False  # write eos_token_id as [2] instead of 2
    fp8: bool = False
    mtp: bool = True


def write_tiny(path: str | Path, options: TinyOptions | None = None) -> Path:
    """Write the checkpoint to `path`, which must not exist or be empty, and return it.

    It is written beside `path` and renamed at the end, so an interrupted call leaves no half
    checkpoint.
    Raises FileExistsError, ConfigError (impossible sizes), ValueError (vocab too small).
    """
    path, options = Path(path), options or TinyOptions()
    if path.exists() and any(path.iterdir()):
        raise FileExistsError(f"{path} is not empty; remove it or choose another directory.")
    raw = tiny_config(options)
    config, vocabulary = LongcatConfig.from_dict(raw), build_vocabulary(options.vocab)
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_json(partial / "config.json", raw)
    defaults = generation_config(bos=BOS_ID, eos=raw["eos_token_id"], pad=PAD_ID)
    _write_json(partial / "generation_config.json", defaults)
    write_tokenizer(partial, vocabulary)
    _write_shards(partial, config=config, options=options, vocabulary=vocabulary)
    return partial.rename(path)


def tiny_config(options: TinyOptions) -> dict[str, Any]:
    """config.json for `options`, in its published form."""
    window = options.max_position // _YARN_FACTOR
    yarn = _YARN | {"factor": _YARN_FACTOR, "original_max_position_embeddings": window}
    config = {
        "architectures": ["LongcatFlashNgramForCausalLM"],
        "model_type": "longcat_flash_ngram",
        "torch_dtype": "bfloat16",
        "vocab_size": options.vocab,
        "hidden_size": options.hidden,
        "num_layers": options.layers,
        "num_attention_heads": options.heads,
        "ffn_hidden_size": options.ffn,
        "expert_ffn_hidden_size": options.expert_ffn,
        "q_lora_rank": options.q_lora,
        "kv_lora_rank": options.kv_lora,
        "qk_nope_head_dim": options.nope,
        "qk_rope_head_dim": options.rope,
        "v_head_dim": options.v,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "attention_bias": False,
        "rope_theta": 5000000.0,
        "rope_scaling": yarn if options.rope_scaling else None,
        "max_position_embeddings": options.max_position,
        "n_routed_experts": options.experts,
        "zero_expert_num": options.zero_experts,
        "zero_expert_type": "identity",
        "moe_topk": options.topk,
        "routed_scaling_factor": 6.0,
        "emb_neighbor_num": options.neighbors,
        "emb_split_num": options.splits,
        "ngram_vocab_size_ratio": options.ratio,
        "rms_norm_eps": 1e-05,
        "bos_token_id": BOS_ID,
        "eos_token_id": [EOS_ID] if options.eos_list else EOS_ID,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    return config | (_fp8_config() if options.fp8 else {})


def _fp8_config() -> dict[str, Any]:
    return {
        "disable_quant_module": [],
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
            "ignored_layers": [
                "lm_head",
                "model.embed_tokens",
                "model.ngram_embeddings",
                "model.norm",
                "model.mtp.embed_tokens",
                "model.mtp.norm",
            ],
        },
    }


def _tensors(
    *, config: LongcatConfig, options: TinyOptions, vocabulary: Vocabulary
) -> Iterator[tuple[str, torch.Tensor]]:
    shapes, text_ids = expected_tensors(config, mtp=options.mtp), vocabulary.text_ids
    for name, shape in shapes.items():
        value = tensor_value(name, shape, seed=options.seed, text_ids=text_ids)
        if is_quantised(name, config.quant):
            value, scale = block_fp8(value, block=FP8_BLOCK)
            yield name + SCALE_SUFFIX, scale
        yield name, value


def _write_shards(
    path: Path, *, config: LongcatConfig, options: TinyOptions, vocabulary: Vocabulary
) -> None:
    tensors = dict(_tensors(config=config, options=options, vocabulary=vocabulary))
    total = sum(tensor.nbytes for tensor in tensors.values())
    # At least two shards: readers of this checkpoint must cope with more than one.
    shards = _split(tensors, limit=min(options.shard_mb * 2**20, total // 2))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({n: tensors[n] for n in names}, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(path / INDEX_NAME, index)


def _split(tensors: dict[str, torch.Tensor], *, limit: int) -> list[list[str]]:
    """Names in order, cut before `limit` bytes are exceeded."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")

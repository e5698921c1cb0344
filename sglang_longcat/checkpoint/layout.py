"""Every tensor of a published LongCat-Flash-Lite checkpoint: name, shape, dtype.

Owns: the layout table, which follows from the sizes in config.json, and which of its tensors a
block-FP8 checkpoint quantises. This file knows neither torch nor files: `check` compares the table
with a directory, and `testing.tiny` writes a directory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sglang_longcat.config import LongcatConfig, QuantConfig

MTP_PREFIX = "model.mtp."
SCALE_SUFFIX = "_scale_inv"
FP8_DTYPE = "F8_E4M3"

# Block FP8 quantises the weights of the plain linear layers, which have these names. It keeps the
# word, n-gram and MTP embeddings, post_projs, norms, router and lm_head.
_LINEAR = re.compile(r"\.(\w+_proj|kv_a_proj_with_mqa)\.weight$")
_FLOAT32 = (".mlp.router.classifier.weight", ".mlp.router.e_score_correction_bias")

Shapes = dict[str, tuple[int, ...]]


def expected_tensors(config: LongcatConfig, *, mtp: bool) -> Shapes:
    """Names and shapes of the unquantised checkpoint; `mtp` adds the MTP layer's 17 tensors."""
    vocab, hidden = config.vocab_size, config.hidden_size
    shapes: Shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    shapes |= _prefixed("model.ngram_embeddings.", _ngram(config))
    for layer in range(config.num_layers):
        shapes |= _prefixed(f"model.layers.{layer}.", _layer(config))
    if mtp:
        shapes |= draft_tensors(config)
    return shapes


def draft_tensors(config: LongcatConfig) -> Shapes:
    """Names and shapes of the 17 tensors of the MTP layer alone, unquantised."""
    return _prefixed(MTP_PREFIX, _mtp(config))


def is_linear(name: str) -> bool:
    """True for the weights that block FP8 quantises unless config.json says otherwise."""
    return _LINEAR.search(name) is not None


def is_quantised(name: str, quant: QuantConfig | None) -> bool:
    """True if `name` is stored in FP8 next to a `<name>_scale_inv`."""
    if quant is None or not quant.is_block_fp8 or not is_linear(name):
        return False
    return not quant.ignores(name.removesuffix(".weight"))


def add_scales(shapes: Mapping[str, tuple[int, ...]], quant: QuantConfig | None) -> Shapes:
    """Add `<x>.weight_scale_inv` [ceil(o / block_o), ceil(i / block_i)] for each quantised weight.

    Dequantised: weight[o, i] * scale_inv[o // block_o, i // block_i].
    """
    result = dict(shapes)
    if quant is not None and quant.block is not None:
        for name in filter(lambda name: is_quantised(name, quant), shapes):
            result[name + SCALE_SUFFIX] = tuple(
                -(-size // block) for size, block in zip(shapes[name], quant.block, strict=True)
            )
    return result


def tensor_dtype(name: str, quant: QuantConfig | None = None) -> str:
    """The safetensors dtype of `name`: F32 for router and scales, F8_E4M3 if quantised, or BF16."""
    if name.endswith((SCALE_SUFFIX, *_FLOAT32)):
        return "F32"
    return FP8_DTYPE if is_quantised(name, quant) else "BF16"


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _ngram(config: LongcatConfig) -> Shapes:
    ngram = config.ngram
    if ngram is None:
        return {}
    shapes: Shapes = {}
    for table, rows in enumerate(ngram.rows):
        shapes[f"embedders.{table}.weight"] = (rows, ngram.width)
        shapes[f"post_projs.{table}.weight"] = (config.hidden_size, ngram.width)
    return shapes


def _layer(config: LongcatConfig) -> Shapes:
    """One ScMoE layer: two attention and two dense FFN sub-blocks around one MoE."""
    hidden, shapes = config.hidden_size, Shapes()
    for half in range(2):
        shapes |= _prefixed(f"self_attn.{half}.", _attention(config))
        shapes |= _prefixed(f"mlps.{half}.", _ffn(hidden, config.ffn_hidden_size))
        shapes[f"input_layernorm.{half}.weight"] = (hidden,)
        shapes[f"post_attention_layernorm.{half}.weight"] = (hidden,)
    shapes["mlp.router.classifier.weight"] = (config.router_logits, hidden)
    shapes["mlp.router.e_score_correction_bias"] = (config.router_logits,)
    for expert in range(config.n_routed_experts):  # identity experts have no weights
        shapes |= _prefixed(f"mlp.experts.{expert}.", _ffn(hidden, config.expert_ffn_hidden_size))
    return shapes


def _attention(config: LongcatConfig) -> Shapes:
    hidden, heads = config.hidden_size, config.num_attention_heads
    nope, rope, v = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    q_rank, kv_rank = config.q_lora_rank, config.kv_lora_rank
    return {
        "q_a_proj.weight": (q_rank, hidden),
        "q_a_layernorm.weight": (q_rank,),
        "q_b_proj.weight": (heads * (nope + rope), q_rank),
        "kv_a_proj_with_mqa.weight": (kv_rank + rope, hidden),
        "kv_a_layernorm.weight": (kv_rank,),
        "kv_b_proj.weight": (heads * (nope + v), kv_rank),
        "o_proj.weight": (hidden, heads * v),
    }


def _ffn(hidden: int, inner: int) -> Shapes:
    return {
        "gate_proj.weight": (inner, hidden),
        "up_proj.weight": (inner, hidden),
        "down_proj.weight": (hidden, inner),
    }


def _mtp(config: LongcatConfig) -> Shapes:
    """The draft head: its own word embedding and one dense layer; lm_head is the target's."""
    hidden = config.hidden_size
    layer: Shapes = {f"{norm}.m.weight": (hidden,) for norm in ("enorm", "hnorm")}
    layer["eh_proj.weight"] = (hidden, 2 * hidden)
    layer["input_layernorm.weight"] = (hidden,)
    layer["post_attention_layernorm.weight"] = (hidden,)
    layer |= _prefixed("self_attn.", _attention(config))
    layer |= _prefixed("transformer_layer.mlp.", _ffn(hidden, config.ffn_hidden_size))
    outside: Shapes = {
        "embed_tokens.weight": (config.vocab_size, hidden),
        "norm.weight": (hidden,),
    }
    return outside | _prefixed("layers.0.", layer)

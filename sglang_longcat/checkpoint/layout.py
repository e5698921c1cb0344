"""Every tensor of a published LongCat-Flash-Lite checkpoint: name, shape, dtype.

Owns: the layout table, which follows from the sizes in config.json, which of its tensors a
quantised checkpoint quantises, and what block FP8 stores for them (4 bits: `packed_layout`). This
file knows neither torch nor files: `check` compares the table with a directory, and `testing.tiny`
writes a directory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from sglang_longcat.checkpoint import packed_layout
from sglang_longcat.checkpoint.packed_layout import Shapes
from sglang_longcat.config import ConfigError, LongcatConfig, QuantConfig

MTP_PREFIX = "model.mtp."
SCALE_SUFFIX = "_scale_inv"
FP8_DTYPE = "F8_E4M3"

# Quantised are the weights of the plain linear layers, which have these names. Word, n-gram and MTP
# embeddings, post_projs, norms, router and lm_head never are.
_LINEAR = re.compile(r"\.(\w+_proj|kv_a_proj_with_mqa)\.weight$")
# SGLang's names of layers that it makes of several of the checkpoint's.
_FUSED = {
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "experts": ("experts.0.gate_proj",),
}
_FLOAT32 = (".mlp.router.classifier.weight", ".mlp.router.e_score_correction_bias")


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
    """True for the weights that a checkpoint quantises unless config.json says otherwise."""
    return _LINEAR.search(name) is not None


def fused_parts(module: str) -> tuple[str, ...]:
    """The checkpoint's modules in SGLang's layer `module`; of experts, one that stands for all."""
    parent, _, name = module.rpartition(".")
    return tuple(f"{parent}.{part}" for part in _FUSED.get(name, (name,)))


def is_quantised(name: str, quant: QuantConfig | None) -> bool:
    """True if the weight `name` is stored in FP8 next to a `<name>_scale_inv`, or as the tensors
    of `packed_layout`."""
    if quant is None or not is_linear(name):
        return False
    return not quant.ignores(name.removesuffix(".weight"))


def as_stored(shapes: Mapping[str, tuple[int, ...]], quant: QuantConfig | None) -> Shapes:
    """The tensors that a checkpoint with this quantisation has for these unquantised ones.

    Block FP8 adds `<x>.weight_scale_inv` [ceil(o / block_o), ceil(i / block_i)] for each quantised
    weight. Dequantised: weight[o, i] * scale_inv[o // block_o, i // block_i]. In 4 bits the tensors
    of `packed_layout` stand in place of the weight.
    """
    result: Shapes = {}
    for name, shape in shapes.items():
        if quant is None or not is_quantised(name, quant):
            result[name] = shape
        elif quant.packed is not None:
            module = name.removesuffix(".weight")
            result |= packed_layout.tensors(module, shape, quant.packed)
        elif quant.block is not None:
            result[name] = shape
            result[name + SCALE_SUFFIX] = tuple(
                -(-size // block) for size, block in zip(shape, quant.block, strict=True)
            )
    return result


def require_uniform(shapes: Iterable[str], quant: QuantConfig | None) -> None:
    """ConfigError if some tensors are in 4 bits of those that SGLang makes one layer of. shapes:
    the names before quantisation."""
    if quant is None or quant.packed is None:
        return
    layouts: dict[str, str] = {}
    for name in filter(is_linear, shapes):
        layer = in_one_layer(name.removesuffix(".weight"))
        first = layouts.setdefault(layer, name)
        if is_quantised(first, quant) != is_quantised(name, quant):
            raise ConfigError(
                f"config.json says that one of {first} and {name} is quantised and the other is "
                "not. Both are parts of one layer here: quantise or leave out both."
            )


def in_one_layer(module: str) -> str:
    """A name that modules share that become one layer."""
    if ".experts." in module:
        return module.partition(".experts.")[0]
    parent, _, name = module.rpartition(".")
    return next((f"{parent}.{fused}" for fused, of in _FUSED.items() if name in of), module)


def optional_tensors(shapes: Mapping[str, tuple[int, ...]], quant: QuantConfig | None) -> Shapes:
    """Those that some writers leave out."""
    result: Shapes = {}
    if quant is not None and quant.packed is not None:
        for name in filter(lambda name: is_quantised(name, quant), shapes):
            module = name.removesuffix(".weight")
            result |= packed_layout.optional_tensors(module, shapes[name], quant.packed)
    return result


def with_draft_as_stored(config: LongcatConfig, names: Iterable[str]) -> LongcatConfig:
    """`config`, with the MTP layer left out of a 4-bit quantisation if `names`, the checkpoint's
    tensors, have weights of it unquantised that config.json says to be quantised. Quantisers load
    the model without that layer, so their config.json says nothing of it."""
    quant = config.quant
    if quant is None or quant.packed is None:
        return config
    if not any(name.startswith(MTP_PREFIX) and is_quantised(name, quant) for name in names):
        return config
    ignored = (*quant.ignored, MTP_PREFIX.removesuffix("."))
    return replace(config, quant=replace(quant, ignored=ignored))


def tensor_dtype(name: str, quant: QuantConfig | None = None) -> str:
    """The safetensors dtype of `name`: F32 for router and scales, F8_E4M3 if quantised, those of
    `packed_layout` in 4 bits, or BF16."""
    if name.endswith((SCALE_SUFFIX, *_FLOAT32)):
        return "F32"
    if quant is not None and quant.packed is not None:
        return packed_layout.dtype_of(name) or "BF16"
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

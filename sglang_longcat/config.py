"""A frozen, validated view of the checkpoint's config.json.

Owns: names and aliases of config keys, derived sizes, and which configs are "Lite". Knows neither
SGLang nor torch. The reference, the checkpoint writer, the weight reader and the model take their
sizes from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from sglang_longcat.quantisation import formats
from sglang_longcat.quantisation.fields import Fields
from sglang_longcat.quantisation.packed import FormatError, PackedFormat

# Fields of LongCat-2.0 / Lite-Sparse: sparse attention, full-scale word embedding. Not this model.
_SPARSE_KEYS = ("index_topk", "index_n_heads", "index_head_dim")
# The last name of each is the one under which SGLang's LongcatFlashConfig keeps the value.
_NGRAM_N = ("emb_neighbor_num", "oe_neighbor_num", "ngram_embedding_n")
_NGRAM_K = ("emb_split_num", "oe_split_num", "ngram_embedding_k")
_NGRAM_RATIO = ("ngram_vocab_size_ratio", "oe_vocab_size_ratio")
_NGRAM_ROWS = "ngram_embedding_m"


class ConfigError(ValueError):
    """config.json describes a model that this package does not serve."""


def _read(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{file} does not exist; expected that of LongCat-Flash-Lite. Check the path, and that "
            "the download finished."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{file} holds no JSON ({error}). Download it again.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no object, but {config!r:.40}. Download it again.")
    return config


def _first(config: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
    return next((config[k] for k in keys if config.get(k) is not None), default)


def is_lite(config: Mapping[str, Any]) -> bool:
    """True for LongCat-Flash with n-gram tables (Lite). False for Flash-Chat, which has no tables,
    and for the sparse variants."""
    has_tables = _first(config, *_NGRAM_RATIO, _NGRAM_ROWS) is not None
    return has_tables and not any(config.get(key) is not None for key in _SPARSE_KEYS)


@dataclass(frozen=True)
class NgramConfig:
    """Sizes of the N-gram embedding: orders 2..n, k hashes each (paper section 3, eq. 1-3)."""

    n: int
    k: int
    vocab_size: int  # the hash base V
    rows_base: int  # m = ratio * V
    hidden_size: int

    @property
    def tables(self) -> int:
        return (self.n - 1) * self.k

    @property
    def width(self) -> int:
        return self.hidden_size // self.tables

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of each table, which are also the hash moduli: m + 2i + 1."""
        return tuple(self.rows_base + 2 * i + 1 for i in range(self.tables))

    def order(self, table: int) -> int:
        """How many tokens table number `table` hashes, including the current one."""
        return table // self.k + 2


@dataclass(frozen=True)
class QuantConfig:
    """How the weights are stored, from `quantization_config`."""

    method: str
    block: tuple[int, int] | None
    ignored: tuple[str, ...]  # dotted module names, or parts of one such as "self_attn"
    packed: PackedFormat | None = None  # of 4-bit weights

    @property
    def is_block_fp8(self) -> bool:
        return self.method == "fp8" and self.block is not None

    @property
    def format(self) -> str:
        """ "block-fp8", "int4" for packed 4-bit weights, or the name of another method."""
        if self.is_block_fp8:
            return "block-fp8"
        return "int4" if self.packed is not None else self.method

    def ignores(self, module: str) -> bool:
        """True if `module` (say "model.layers.0.mlps.1.up_proj") stays unquantised."""
        if any(f".{part}." in f".{module}." for part in self.ignored):
            return True
        return self.packed is not None and not self.packed.quantises(module)

    def __str__(self) -> str:
        return "block FP8" if self.packed is None else str(self.packed)


@dataclass(frozen=True)
class LongcatConfig:
    """One name per size; see `from_dict` for the accepted aliases."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    ffn_hidden_size: int
    expert_ffn_hidden_size: int
    n_routed_experts: int
    zero_expert_num: int
    zero_expert_type: str | None
    moe_topk: int
    routed_scaling_factor: float
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    max_position_embeddings: int
    mla_scale_q_lora: bool
    mla_scale_kv_lora: bool
    eos_token_ids: tuple[int, ...]
    ngram: NgramConfig | None
    quant: QuantConfig | None = None

    @property
    def weight_format(self) -> str:
        """How the linear layers are stored: "bf16", or `QuantConfig.format`."""
        return self.quant.format if self.quant else "bf16"

    @property
    def q_scale(self) -> float:
        """Factor on the normalised q latent (folded into q_a_layernorm when serving)."""
        return (self.hidden_size / self.q_lora_rank) ** 0.5 if self.mla_scale_q_lora else 1.0

    @property
    def kv_scale(self) -> float:
        """Factor on the normalised kv latent (folded into kv_a_layernorm when serving)."""
        return (self.hidden_size / self.kv_lora_rank) ** 0.5 if self.mla_scale_kv_lora else 1.0

    @property
    def router_logits(self) -> int:
        return self.n_routed_experts + self.zero_expert_num

    @classmethod
    def from_dir(cls, path: str | Path) -> LongcatConfig:
        return cls.from_file(Path(path) / "config.json")

    @classmethod
    def from_file(cls, file: Path) -> LongcatConfig:
        """ConfigError, with the file's name, also for one that is missing or holds no object."""
        return cls.from_dict(_read(file))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> LongcatConfig:
        """Read the keys of a published config.json (or `PretrainedConfig.to_dict()`).

        Aliases: num_layers / num_hidden_layers (the published file says 14 / 28; 14 counts),
        ffn_hidden_size / intermediate_size, expert_ffn_hidden_size / moe_intermediate_size,
        emb_* and ngram_* / oe_* / ngram_embedding_*. Raises ConfigError on a missing key or an
        unsupported value.
        """

        def need(*keys: str, kind: type[int] | UnionType = int) -> Any:
            value = _first(config, *keys)
            if value is None:
                raise ConfigError(
                    f"config.json lacks {' / '.join(keys)}; expected a LongCat-Flash-Lite config. "
                    "Check that the model directory is complete."
                )
            if not isinstance(value, kind) or isinstance(value, bool) or value <= 0:
                raise ConfigError(
                    f"config.json: {' / '.join(keys)} is {value!r}; expected a positive number. "
                    "Fix config.json."
                )
            return value

        rope = _first(config, "rope_scaling", "rope_parameters") or {}
        scaled = _first(rope, "rope_type", "type", default="default") != "default"
        self = cls(
            vocab_size=need("vocab_size"),
            hidden_size=need("hidden_size"),
            num_layers=need("num_layers", "num_hidden_layers"),
            num_attention_heads=need("num_attention_heads"),
            q_lora_rank=need("q_lora_rank"),
            kv_lora_rank=need("kv_lora_rank"),
            qk_nope_head_dim=need("qk_nope_head_dim"),
            qk_rope_head_dim=need("qk_rope_head_dim"),
            v_head_dim=need("v_head_dim"),
            ffn_hidden_size=need("ffn_hidden_size", "intermediate_size"),
            expert_ffn_hidden_size=need("expert_ffn_hidden_size", "moe_intermediate_size"),
            n_routed_experts=need("n_routed_experts"),
            zero_expert_num=_first(config, "zero_expert_num", default=0),
            zero_expert_type=config.get("zero_expert_type"),
            moe_topk=need("moe_topk"),
            routed_scaling_factor=float(need("routed_scaling_factor", kind=int | float)),
            rms_norm_eps=_first(config, "rms_norm_eps", default=1e-5),
            rope_theta=float(
                _first(config, "rope_theta", default=_first(rope, "rope_theta") or 1e7)
            ),
            rope_scaling=dict(rope) if scaled else None,
            max_position_embeddings=need("max_position_embeddings"),
            mla_scale_q_lora=_first(config, "mla_scale_q_lora", default=True),
            mla_scale_kv_lora=_first(config, "mla_scale_kv_lora", default=True),
            eos_token_ids=_as_tuple(_first(config, "eos_token_id", default=2)),
            ngram=_ngram(config),
            quant=read_quant(config),
        )
        _validate(self, config)
        return self


def _as_tuple(eos: int | list[int]) -> tuple[int, ...]:
    return (eos,) if isinstance(eos, int) else tuple(eos)


def _ngram(config: Mapping[str, Any]) -> NgramConfig | None:
    ratio = _first(config, *_NGRAM_RATIO)
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    rows = config.get(_NGRAM_ROWS) if ratio is None else int(ratio * vocab)
    if rows is None:
        return None
    n, k = _first(config, *_NGRAM_N), _first(config, *_NGRAM_K)
    if not isinstance(n, int) or not isinstance(k, int) or n < 2 or k < 1:
        raise ConfigError(
            f"emb_neighbor_num={n!r}, emb_split_num={k!r}: expected integers of at least 2 and 1. "
            "Fix config.json."
        )
    if hidden % ((n - 1) * k):
        raise ConfigError(
            f"hidden_size {hidden} is not divisible by (emb_neighbor_num-1)*emb_split_num "
            f"= {(n - 1) * k}: the n-gram tables cannot share it. Fix config.json."
        )
    return NgramConfig(n=n, k=k, vocab_size=vocab, rows_base=rows, hidden_size=hidden)


def read_quant(config: Mapping[str, Any]) -> QuantConfig | None:
    """The format of the weights, or None for unquantised ones (no `quantization_config`, null or
    {}). ConfigError for a format that is not served."""
    try:
        raw = Fields.of(config.get("quantization_config"))
        return _quant(raw, Fields.of(config, "config.json")) if raw.raw else None
    except FormatError as error:
        raise ConfigError(str(error)) from error


def _quant(raw: Fields, config: Fields) -> QuantConfig:
    method = raw.text("quant_method", "unknown").lower()
    block = _block(raw.raw.get("weight_block_size"))
    ignored = raw.strings("ignored_layers") or raw.strings("modules_to_not_convert")
    return QuantConfig(
        method=method,
        block=block,
        ignored=(*ignored, *config.strings("disable_quant_module")),
        packed=None if method == "fp8" and block is not None else formats.read(raw.raw),
    )


def _block(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    match value:
        case [int(outputs), int(inputs)] if min(outputs, inputs) >= 1:
            return outputs, inputs
    raise ConfigError(
        f"weight_block_size {value!r}: expected two positive integers. Fix config.json."
    )


def _validate(self: LongcatConfig, config: Mapping[str, Any]) -> None:
    if self.zero_expert_num and self.zero_expert_type != "identity":
        raise ConfigError(
            f"zero_expert_type {self.zero_expert_type!r} is unknown: only 'identity' is supported. "
            "Fix config.json, or use a release of sglang-longcat that knows it."
        )
    if self.moe_topk > self.router_logits:
        raise ConfigError(
            f"moe_topk {self.moe_topk} exceeds the {self.router_logits} experts. Fix config.json."
        )
    for key in ("norm_topk_prob", "router_bias", "attention_bias", "tie_word_embeddings"):
        if config.get(key):
            raise ConfigError(f"{key}=true is not supported: LongCat-Flash-Lite sets it to false.")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act {config['hidden_act']!r} is not supported, only 'silu'.")

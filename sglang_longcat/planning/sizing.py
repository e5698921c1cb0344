"""Bytes that the model needs and bytes that a decode step reads, from config.json alone.

Owns: the arithmetic of weights, n-gram tables, KV cache and traffic, per tensor-parallel rank.
Names, shapes and dtypes of the tensors are `checkpoint/layout.py`'s. Knows neither SGLang nor
torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from longcat_kernels.kv_width import row_width as kv_row_width
from longcat_kernels.row_layout import row_width
from sglang_longcat.checkpoint.layout import (
    MTP_PREFIX,
    as_stored,
    expected_tensors,
    is_quantised,
    tensor_dtype,
)
from sglang_longcat.checkpoint.packed_layout import Shapes, served_tensors
from sglang_longcat.config import LongcatConfig, QuantConfig
from sglang_longcat.quantisation.packed import PackedFormat

KvDtype = Literal["bf16", "fp8"]  # of the KV cache: bf16 stands for the model's own type
KV_FLAGS = ("auto", "fp8_e4m3")  # of --kv-cache-dtype
TableDtype = Literal["bf16", "fp8", "int4"]  # bf16 stands for the model's own type
GIB, MIB = 1 << 30, 1 << 20
# Bytes of a value, by safetensors' name of its dtype. An I32 holds eight 4-bit values.
WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I32": 4, "I64": 8}
# Of LongcatConfig.weight_format: `checkpoint/` has the layouts of these.
FORMATS = ("bf16", "block-fp8", "int4")
_BLOCK = (128, 128)
# Whole on every rank: the latent projections feed all heads, the router scores all experts, and
# the draft joins its two inputs.
_REPLICATED = (".q_a_proj.", ".kv_a_proj_with_mqa.", "norm", ".router.", "norm.m", ".eh_proj.")
# Repeated on every replica of attention, and split over that replica's ranks.
_OF_ATTENTION = (".self_attn.", "embed_tokens")


@dataclass(frozen=True)
class Parts:
    """Bytes of one rank's weights, grouped by how much of them a decode step reads."""

    tables: int  # n-gram tables: 12 rows a token
    embedding: int  # word embedding: one row a token
    experts: int  # routed experts: those that the router chose
    rest: int  # everything else: all of it
    copies: int  # a second kv_b_proj, as the two halves that SGLang's MLA decodes with

    @property
    def without_tables(self) -> int:
        return self.embedding + self.experts + self.rest + self.copies


def in_format(config: LongcatConfig, weight_format: str) -> LongcatConfig:
    """The same model, unquantised in `config`, in one of FORMATS. Raises KeyError for others."""
    formats = {"bf16": config, "block-fp8": in_fp8(config), "int4": in_int4(config)}
    return formats[weight_format]


def in_fp8(config: LongcatConfig) -> LongcatConfig:
    """The same model as a block-FP8 checkpoint (128 x 128, the published one)."""
    return replace(config, quant=QuantConfig(method="fp8", block=_BLOCK, ignored=()))


def in_int4(config: LongcatConfig) -> LongcatConfig:
    """The same model with 4-bit linear layers: symmetric, groups of 128, the MTP layer in bf16, as
    AutoRound writes it."""
    packed = PackedFormat("auto-round", "gptq", group_size=128, symmetric=True)
    left_out = (MTP_PREFIX.removesuffix("."),)
    quant = QuantConfig(method=packed.method, block=None, ignored=left_out, packed=packed)
    return replace(config, quant=quant)


def stored_as(config: LongcatConfig, dtype: str) -> LongcatConfig:
    """The same model with linear layers of type bf16, fp8 or int4; a quantised checkpoint stays as
    it is."""
    if config.quant is not None:
        return config
    return in_format(config, "block-fp8" if dtype == "fp8" else dtype)


def parts(
    config: LongcatConfig,
    *,
    ranks: int = 1,
    attention_dp: int = 1,
    table_dtype: TableDtype = "bf16",
    mtp: bool = False,
) -> Parts:
    """One rank's share. Expert parallelism does not change it, since experts are equal in size.
    Each of `attention_dp` replicas holds attention, embedding and tables once, split over its own
    ranks. mtp: with the draft head. Raises ValueError for a format that FORMATS lacks."""
    if config.weight_format not in FORMATS:
        raise ValueError(
            f"quantization_config in config.json says {config.weight_format}; expected one of "
            f"{', '.join(FORMATS)}. Use a checkpoint in one of these formats."
        )
    replica = ranks // attention_dp
    sums = {"embedding": 0, "experts": 0, "rest": 0, "copies": 0}
    for name, shape in as_served(expected_tensors(config, mtp=mtp), config.quant).items():
        if ".embedders." in name:
            continue
        size = WIDTH[tensor_dtype(name, config.quant)] * math.prod(shape)
        sharers = replica if any(part in name for part in _OF_ATTENTION) else ranks
        size = size if any(part in name for part in _REPLICATED) else -(-size // sharers)
        sums[_use(name)] += size
        if name.endswith(".kv_b_proj.weight"):
            sums["copies"] += -(-math.prod(shape) * WIDTH["BF16"] // replica)
    return Parts(tables=table_bytes(config, table_dtype, ranks=replica), **sums)


def as_served(shapes: Shapes, quant: QuantConfig | None) -> Shapes:
    """The tensors that a rank holds: those of the checkpoint, but 4-bit weights as the model's
    reader hands them on."""
    if quant is None or quant.packed is None:
        return as_stored(shapes, quant)
    result: Shapes = {}
    for name, shape in shapes.items():
        if is_quantised(name, quant):
            result |= served_tensors(name.removesuffix(".weight"), shape, quant.packed)
        else:
            result[name] = shape
    return result


def draft_bytes(
    config: LongcatConfig,
    *,
    ranks: int = 1,
    attention_dp: int = 1,
    own_embedding: bool = True,
    fp8_head: bool = True,
) -> int:
    """What the MTP layer adds to a rank that drafts: its tensors, and the block-FP8 copy of the
    rank's rows of the head (0.38 GiB on one GPU). A token map makes the copy smaller."""
    with_mtp, without = (
        parts(config, ranks=ranks, attention_dp=attention_dp, mtp=mtp) for mtp in (True, False)
    )
    mtp = with_mtp.without_tables - without.without_tables
    if not own_embedding:
        mtp -= with_mtp.embedding - without.embedding
    return mtp + fp8_head * fp8_copy_bytes(-(-config.vocab_size // ranks), config.hidden_size)


def fp8_copy_bytes(rows: int, columns: int) -> int:
    """A weight in block FP8, with a scale for 128 x 128 values."""
    scales = -(-rows // _BLOCK[0]) * -(-columns // _BLOCK[1])
    return rows * columns * WIDTH["F8_E4M3"] + scales * WIDTH["F32"]


def _use(name: str) -> str:
    if "embed_tokens" in name:
        return "embedding"
    return "experts" if ".experts." in name else "rest"


def table_bytes(config: LongcatConfig, dtype: TableDtype = "bf16", *, ranks: int = 1) -> int:
    """The n-gram tables of one rank, which holds its columns of every row."""
    if config.ngram is None:
        return 0
    columns = config.ngram.width // ranks
    return sum(config.ngram.rows) * row_bytes(columns, WIDTH["BF16"], dtype)


def row_bytes(columns: int, value_bytes: int, dtype: TableDtype) -> int:
    """One rank's part of a row of a table. Rows of fp8 and int4 carry their scales and do not
    depend on `value_bytes`."""
    if dtype == "bf16":
        return columns * value_bytes
    return row_width(columns, dtype)


def weight_bytes(config: LongcatConfig, *, mtp: bool = False) -> int:
    """All weights of the checkpoint, tables included, as `config.quant` stores them."""
    stored = as_stored(expected_tensors(config, mtp=mtp), config.quant)
    return sum(
        WIDTH[tensor_dtype(name, config.quant)] * math.prod(shape) for name, shape in stored.items()
    )


def kv_dtype(flag: str | None) -> KvDtype:
    """Of --kv-cache-dtype, None if it is not given."""
    return "fp8" if flag == "fp8_e4m3" else "bf16"


def kv_bytes_per_token(
    config: LongcatConfig,
    dtype: KvDtype = "bf16",
    *,
    draft: bool = False,
    value_bytes: int = WIDTH["BF16"],
) -> int:
    """Of every rank, since the latent is not split. A layer has two attention blocks, and the MTP
    layer that drafts has one. value_bytes: of the model's type. FP8 rows are counted in bytes, and
    hold scales and rope parts of their own."""
    fp8 = dtype == "fp8"
    row = kv_row_width(config.kv_lora_rank, config.qk_rope_head_dim, fp8=fp8)
    return (2 * config.num_layers + draft) * row * (1 if fp8 else value_bytes)


def experts_read(config: LongcatConfig, batch: int) -> float:
    """Expected number of a layer's routed experts that `batch` tokens reach with uniform routing:
    N (1 - (1 - k/N)^batch), where k of a token's slots go to routed experts on average."""
    share = config.moe_topk / config.router_logits
    return config.n_routed_experts * (1 - (1 - share) ** batch)


def step_bytes(
    config: LongcatConfig,
    *,
    batch: int,
    context: int,
    ranks: int = 1,
    attention_dp: int = 1,
    kv_dtype: KvDtype = "bf16",
) -> float:
    """What one rank reads from its own memory to decode one token of each of `batch` requests of
    `context` tokens: weights once, the experts that the batch reaches, and the KV cache of its
    replica's requests. Rows of embeddings (6 KiB a token) and activations are left out."""
    share = parts(config, ranks=ranks, attention_dp=attention_dp)
    experts = share.experts * experts_read(config, batch) / config.n_routed_experts
    requests = -(-batch // attention_dp)
    return share.rest + experts + requests * context * kv_bytes_per_token(config, kv_dtype)


def step_flops(config: LongcatConfig, *, batch: int, context: int, ranks: int = 1) -> float:
    """Of one rank: two per weight and token, and attention over the latent cache. Attention DP has
    the same sum: it splits requests over the ranks instead of heads."""
    plain = parts(replace(config, quant=None), ranks=ranks)
    routed = plain.experts * config.moe_topk / config.router_logits
    heads = config.num_attention_heads / ranks
    latent = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    attention = 2 * config.num_layers * heads * latent * 2 * context
    return batch * (plain.rest + routed + attention)  # 2 FLOP per weight of 2 bytes

"""LongCat-Flash-Lite's dense projections, and seeded inputs. For tests, tuning and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels import lite
from longcat_kernels.fp8_layout import quantise_blocks
from longcat_kernels.small_linear.configs import TOKENS, Op

BATCHES = TOKENS
FUSED_A_TOKENS = 16  # up to here SGLang has a kernel of its own for `qkv_a`


class Shape(NamedTuple):
    """One weight [rows, columns] on one rank; its rows are gate and up for SwiGLU."""

    name: str
    op: Op
    rows: int
    columns: int


def model_shapes(
    *,
    hidden: int = lite.HIDDEN,
    ffn: int = lite.FFN,
    q_rank: int = lite.Q_LORA,
    latents: int = lite.KV_LORA + lite.ROPE,
    queries: int = lite.HEADS * (lite.NOPE + lite.ROPE),
    values: int = lite.HEADS * lite.VALUES,
    mlp_ranks: int = 1,
    attention_ranks: int = 1,
) -> tuple[Shape, ...]:
    """The projections that the kernels serve. queries, values: heads times their columns. latents:
    columns that the KV pool keeps of a token. The first projection (`qkv_a`) computes them beside
    the query's latent, and is whole on every rank."""
    return (
        Shape("gate_up", "swiglu_linear", 2 * ffn // mlp_ranks, hidden),
        Shape("down", "linear", hidden, ffn // mlp_ranks),
        Shape("qkv_a", "linear", q_rank + latents, hidden),
        Shape("q_b", "linear", queries // attention_ranks, q_rank),
        Shape("o", "linear", hidden, values // attention_ranks),
    )


LITE = model_shapes()
LITE_TP2 = model_shapes(mlp_ranks=2, attention_ranks=2)
LITE_TP4 = model_shapes(mlp_ranks=4, attention_ranks=4)
LITE_TP8 = model_shapes(mlp_ranks=8, attention_ranks=8)
DRAFT = (Shape("eh", "linear", lite.HIDDEN, 2 * lite.HIDDEN),)  # whole on every rank
# The draft's output head, an FP8 copy, on one of so many ranks.
HEADS = {n: Shape("head", "linear", lite.VOCAB // n, lite.HIDDEN) for n in (1, 2, 4, 8)}


def make_inputs(
    tokens: int, rows: int, columns: int, *, seed: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, columns] and weight [rows, columns], bf16; outputs are about 1."""
    random = torch.Generator(device).manual_seed(seed)
    x = torch.randn(tokens, columns, generator=random, device=device)
    weight = torch.randn(rows, columns, generator=random, device=device) / columns**0.5
    return x.bfloat16(), weight.bfloat16()


Weight = tuple[torch.Tensor, torch.Tensor | None]  # and its scales, None in bf16


def make_weight(
    rows: int, columns: int, *, fp8: bool, seed: int, device: torch.device | str
) -> Weight:
    weight = make_inputs(1, rows, columns, seed=seed, device=device)[1]
    return quantise_blocks(weight) if fp8 else (weight, None)


def make_fp8_inputs(
    tokens: int, rows: int, columns: int, *, seed: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, and the weight of `make_inputs` as block FP8 with its scales."""
    x, weight = make_inputs(tokens, rows, columns, seed=seed, device=device)
    return x, *quantise_blocks(weight)


def bytes_moved(tokens: int, shape: Shape, fp8: bool = False) -> int:
    """Weights and x in, the result out."""
    out = shape.rows // 2 if shape.op == "swiglu_linear" else shape.rows
    weights = (1 if fp8 else 2) * shape.rows * shape.columns
    return weights + 2 * tokens * (shape.columns + out)


def flops(tokens: int, shape: Shape) -> int:
    return 2 * tokens * shape.rows * shape.columns

"""Weights of some layers and what a step feeds them, on the GPU. For tools/tune_layer.py.

Random values, of sizes at which nothing overflows. Experts are chosen by a random router, so that
each layer reads others, as many as a spread routing would. Owns tensors and their layouts, which
are the engine's; layer_step.py launches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from expert_launch import HIDDEN, SHAPES, Batch, Layer, make_batch, make_layer
from layer_space import PROJECTIONS, Size
from layer_tables import CONTEXT
from longcat_kernels.mla_decode import workloads as decode
from longcat_kernels.mla_prologue import workloads as prologue
from longcat_kernels.moe_router import workloads as router

LAYERS = 3  # with other weights each, 15 GB: what one leaves in L2 is no help to the next
SHAPE = SHAPES["tp1"]
BRANCHES = (0, 1)  # attentions and dense MLPs of a layer
_SPREAD = 0.02


@dataclass(frozen=True)
class Weights:
    """One layer's. Tuples have an attention's, or a dense MLP's, each; norms are alike."""

    experts: Layer
    projections: dict[str, tuple[torch.Tensor, ...]]  # [rows, columns]
    w_kc: tuple[torch.Tensor, ...]  # [heads, nope, rank], columns contiguous
    w_vc: tuple[torch.Tensor, ...]
    router: torch.Tensor  # [experts, hidden] fp32
    bias: torch.Tensor


@dataclass(frozen=True)
class Inputs:
    """One step's. caches: by layer and attention."""

    size: Size
    x: torch.Tensor
    batch: Batch
    caches: tuple[tuple[decode.Inputs, ...], ...]
    slots: torch.Tensor  # of the KV pool, whose values do not matter
    cos_sin: torch.Tensor
    norms: dict[int, torch.Tensor]  # by width

    @property
    def positions(self) -> torch.Tensor:
        return self.caches[0][0].positions


def make_weights(seed: int, device: str = "cuda") -> Weights:
    def both(*shape: int) -> tuple[torch.Tensor, ...]:
        return tuple(_random(*shape, device=device) * _SPREAD for _ in BRANCHES)

    w_kc = both(decode.HEADS, decode.RANK, prologue.NOPE)
    return Weights(
        experts=make_layer(SHAPE, device, fp8=False),
        projections={name: both(s.rows, s.columns) for name, s in PROJECTIONS.items()},
        w_kc=tuple(weight.transpose(1, 2) for weight in w_kc),
        w_vc=tuple(decode.make_values(seed=2 * seed + j, device=device) for j in BRANCHES),
        router=_random(router.EXPERTS, HIDDEN, device=device).float() * _SPREAD,
        bias=torch.zeros(router.EXPERTS, device=device),
    )


def make_step(size: Size, device: str = "cuda") -> Inputs:
    def cache(seed: int) -> decode.Inputs:
        lengths = [CONTEXT] * size.requests
        return decode.make_inputs(lengths, seed=seed, device=device, width=size.width)

    widths = (HIDDEN, prologue.Q_LORA, prologue.KV_LORA)
    return Inputs(
        size=size,
        x=_random(size.tokens, HIDDEN, device=device),
        batch=make_batch(SHAPE, size.tokens, device, fp8=False),
        caches=tuple(tuple(cache(2 * i + j) for j in BRANCHES) for i in range(LAYERS)),
        slots=torch.arange(1, size.tokens + 1, device=device),
        cos_sin=prologue.angles(CONTEXT, prologue.ROPE, device),
        norms={n: torch.ones(n, device=device, dtype=torch.bfloat16) for n in widths},
    )


def _random(*shape: int, device: str) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)

"""Routing in plain torch: the oracle of the kernels, and the CPU path."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from longcat_kernels.kv_pool import PADDING_SLOT

LOWEST = torch.finfo(torch.float32).min


class Options(NamedTuple):
    """What routing depends on besides its scores; `longcat_kernels.moe_router` has the rules.

    held: (first, count), the experts of this rank; None: all routed ones. slots: [T] int64, the KV
    slot of each row, PADDING_SLOT for a row that nobody reads; None: there is no such row.
    """

    top_k: int
    routed: int
    scale: float
    held: tuple[int, int] | None = None
    slots: torch.Tensor | None = None

    @property
    def named(self) -> tuple[int, int]:
        return self.held or (0, self.routed)


def logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.mm(x.float(), weight.t())


def route_tokens(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return route(logits(x, weight), bias, options)


def route(
    logits: torch.Tensor, bias: torch.Tensor, options: Options
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    probabilities = logits.softmax(dim=-1)
    scores = (probabilities + bias).nan_to_num(nan=LOWEST, neginf=LOWEST, posinf=math.inf)
    # A stable descending sort takes the lowest expert among equal scores, as the kernel does.
    chosen = scores.sort(dim=-1, descending=True, stable=True).indices[:, : options.top_k]
    weights = probabilities.gather(1, chosen) * options.scale
    first, count = options.named
    identity, place = chosen >= options.routed, chosen - first
    elsewhere = (place < 0) | (place >= count)
    if options.slots is not None:
        padding = (options.slots == PADDING_SLOT)[:, None]
        weights, elsewhere = weights.masked_fill(padding, 0.0), elsewhere | padding
    return (
        weights.masked_fill(identity, 0.0),
        place.masked_fill(elsewhere, -1).to(torch.int32),
        weights.masked_fill(~identity, 0.0).sum(dim=-1),
    )

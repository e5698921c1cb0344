"""Routing in plain torch: the oracle of the kernels, and the CPU path."""

from __future__ import annotations

import math

import torch

LOWEST = torch.finfo(torch.float32).min


def logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.mm(x.float(), weight.t())


def route_tokens(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    top_k: int,
    routed: int,
    scale: float,
    held: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return route(logits(x, weight), bias, top_k, routed, scale, held)


def route(
    logits: torch.Tensor,
    bias: torch.Tensor,
    top_k: int,
    routed: int,
    scale: float,
    held: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    probabilities = logits.softmax(dim=-1)
    scores = (probabilities + bias).nan_to_num(nan=LOWEST, neginf=LOWEST, posinf=math.inf)
    # A stable descending sort takes the lowest expert among equal scores, as the kernel does.
    chosen = scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = probabilities.gather(1, chosen) * scale
    identity, place = chosen >= routed, chosen - held[0]
    return (
        weights.masked_fill(identity, 0.0),
        place.masked_fill((place < 0) | (place >= held[1]), -1).to(torch.int32),
        weights.masked_fill(~identity, 0.0).sum(dim=-1),
    )

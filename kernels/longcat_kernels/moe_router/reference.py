"""Routing in plain torch: the oracle of the kernel, and the CPU path."""

from __future__ import annotations

import torch


def route(
    logits: torch.Tensor, bias: torch.Tensor, top_k: int, routed: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    probabilities = logits.softmax(dim=-1)
    # A stable descending sort takes the lowest expert among equal scores, as the kernel does.
    chosen = (probabilities + bias).sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = probabilities.gather(1, chosen) * scale
    identity = chosen >= routed
    return (
        weights.masked_fill(identity, 0.0),
        chosen.masked_fill(identity, -1).to(torch.int32),
        weights.masked_fill(~identity, 0.0).sum(dim=-1),
    )

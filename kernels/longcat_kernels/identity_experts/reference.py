"""The identity experts' part in plain torch: the oracle of the kernel, and the CPU path."""

from __future__ import annotations

import torch


def add_identity_(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return out.copy_(out.float() + weight[:, None] * x.float())

"""The same in torch: the oracle, and the CPU path."""

from __future__ import annotations

import torch


def join_keys(k_nope: torch.Tensor, k_pe: torch.Tensor) -> torch.Tensor:
    return torch.cat([k_nope, k_pe.expand(-1, k_nope.shape[1], -1)], dim=-1)

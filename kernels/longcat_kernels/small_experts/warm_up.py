"""Every configuration that the table has for a rank's experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.small_experts import launch
from longcat_kernels.small_experts.configs import TOKENS, find
from longcat_kernels.small_experts.reference import Weights

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """One expert: variants depend on its widths. Ids -1 keep the kernels from reading it."""
    for tokens in TOKENS:
        config = find(sizes.expert_columns, sizes.hidden, tokens, sizes.fp8_inputs)
        if config is None:
            continue
        weights = _weights(device, sizes)
        x = torch.zeros(tokens, sizes.hidden, dtype=torch.bfloat16, device=device)
        ids = torch.full((tokens, sizes.top_k), -1, dtype=torch.int32, device=device)
        factors = torch.zeros(tokens, sizes.top_k, device=device)
        for identity in (None, factors[:, 0].contiguous()):
            launch.experts(x, ids, factors, weights, identity, config)


def _weights(device: torch.device | str, sizes: Sizes) -> Weights:
    hidden, columns = sizes.hidden, sizes.expert_columns
    kind = torch.float8_e4m3fn if sizes.fp8_inputs else torch.bfloat16
    up = torch.zeros(1, 2 * columns, hidden, dtype=kind, device=device)
    down = torch.zeros(1, hidden, columns, dtype=kind, device=device)
    if not sizes.fp8_inputs:
        return Weights(up, down)
    scales = torch.zeros(1, 2 * columns // 128, hidden // 128, device=device)
    down_scales = torch.zeros(1, hidden // 128, columns // 128, device=device)
    return Weights(up, down, scales, down_scales)

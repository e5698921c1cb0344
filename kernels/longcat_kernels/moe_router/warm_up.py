"""The router's kernels: behind torch's GEMM, and with their own for each block of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels import moe_router
from longcat_kernels.moe_router import launch

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    weight = torch.zeros(sizes.experts, sizes.hidden, device=device)
    logits = torch.zeros(1, sizes.experts, device=device)
    bias = logits[0].clone()
    options = moe_router.Options(sizes.top_k, sizes.routed, scale=1.5)

    def slots_of(tokens: int) -> tuple[torch.Tensor | None, ...]:
        """Slots, and none: rows that several data-parallel ranks gather have none."""
        return torch.ones(tokens, dtype=torch.int64, device=device), None

    for slots in slots_of(1):
        moe_router.route(logits, bias, options._replace(slots=slots))
    x = torch.zeros(launch.FEW_TOKENS + 1, sizes.hidden, dtype=sizes.dtype, device=device)
    if moe_router.supports(x, weight):
        for tokens in (*(2**n for n in range(launch.MOST_ROWS.bit_length())), len(x)):
            for slots in slots_of(tokens):
                moe_router.route_tokens(x[:tokens], weight, bias, options._replace(slots=slots))

"""The router's kernels: after another's GEMM, and with their own, by tokens of a program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels import moe_router
from longcat_kernels.moe_router import _triton

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    weight = torch.zeros(sizes.experts, sizes.hidden, device=device)
    logits = torch.zeros(1, sizes.experts, device=device)
    bias = logits[0].clone()
    options = moe_router.Options(sizes.top_k, sizes.routed, scale=1.5)

    def known(tokens: int) -> tuple[torch.Tensor | None, ...]:
        """With slots, and without, as rows of several data-parallel ranks are."""
        return torch.ones(tokens, dtype=torch.int64, device=device), None

    for slots in known(1):
        moe_router.route(logits, bias, options._replace(slots=slots))
    x = torch.zeros(_triton.FEW_TOKENS + 1, sizes.hidden, dtype=sizes.dtype, device=device)
    if moe_router.fuses(x, weight):
        for tokens in (*(2**n for n in range(_triton.MOST_ROWS.bit_length())), len(x)):
            for slots in known(tokens):
                moe_router.route_tokens(x[:tokens], weight, bias, options._replace(slots=slots))

"""The one variant of the router's kernel that a model uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.moe_router import route

if TYPE_CHECKING:
    from longcat_kernels.warmup import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    logits = torch.zeros(1, sizes.experts, device=device)
    route(logits, logits[0].clone(), top_k=sizes.top_k, routed=sizes.routed, scale=1.5)

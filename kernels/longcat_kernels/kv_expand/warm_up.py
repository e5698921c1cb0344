"""The variants of the expansion: slots as SGLang's page tables (int32) and allocators (int64) have
them. Only servers with FP8 rows take it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from longcat_kernels.kv_expand import expand, workloads

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    if not sizes.fp8_kv:
        return
    widths: dict[str, Any] = {"rank": sizes.kv_lora, "rope": sizes.rope}
    pool, slots = workloads.make_inputs(1, seed=0, device=device, **widths)
    for kind in (torch.int32, torch.int64):
        expand(pool, slots.to(kind), **widths)

"""The variants of storing: slots as SGLang's allocators have them (int64), and int32. Only servers
with FP8 rows take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.kv_store import round_and_store, workloads

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    if not sizes.fp8_kv or sizes.dtype != torch.bfloat16:
        return
    pool, slots, *rows = workloads.make_inputs(
        1, seed=0, device=device, rank=sizes.kv_lora, rope=sizes.rope
    )
    for kind in (torch.int32, torch.int64):
        round_and_store(pool, slots.to(kind), *rows)

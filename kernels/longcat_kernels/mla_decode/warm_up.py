"""The variants of MLA decode that serving uses: one a window width, and one a number of splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.mla_decode import mla_decode, workloads

if TYPE_CHECKING:
    from longcat_kernels.warmup import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """Only bf16 models take it, and only on request; see `uses_split` in sglang_longcat."""
    if sizes.dtype != torch.bfloat16:
        return
    widths = {"heads": sizes.heads, "rank": sizes.kv_lora, "rope": sizes.rope}
    for width in sizes.windows:
        for requests in range(1, sizes.split_tokens // width + 1):
            inputs = workloads.make_inputs(
                [width] * requests, seed=0, device=device, width=width, **widths
            )
            mla_decode(*inputs, scale=workloads.SCALE, width=width)

"""The variants of MLA decode that serving uses: decode and verification, one token and several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.mla_decode import mla_decode, workloads

if TYPE_CHECKING:
    from longcat_kernels.warmup import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    for width in sizes.windows:
        for requests in (1, 2, 4, 8, 16):  # splits, and so the combination, depend on the tokens
            lengths = [width] * requests
            inputs = workloads.make_inputs(
                lengths, seed=0, device=device, width=width, heads=sizes.heads
            )
            mla_decode(*inputs, scale=workloads.SCALE, width=width)

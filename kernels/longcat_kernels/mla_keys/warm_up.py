"""The one variant of joined keys that a model uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.mla_keys import join_keys, workloads

if TYPE_CHECKING:
    from longcat_kernels.warmup import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    if sizes.dtype == torch.bfloat16:
        shape = {"heads": sizes.heads, "nope": sizes.nope, "rope": sizes.rope}
        join_keys(*workloads.make_inputs(2, seed=0, device=device, **shape))

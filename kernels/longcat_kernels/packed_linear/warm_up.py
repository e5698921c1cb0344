"""Every configuration that the table has for a model's projections in 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.dispatch import is_hopper
from longcat_kernels.packed_linear.configs import TOKENS, find
from longcat_kernels.packed_linear.launch import launch
from longcat_kernels.packed_linear.marlin import TILE_N, Packed

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """Weights of two tiles: variants depend on the columns only, as 32 divides all rows."""
    group = sizes.packed_group
    if group is None or not is_hopper(torch.empty(0, device=device)):
        return  # `is_faster` says no
    for shape in sizes.projections:
        rows, columns = 2 * TILE_N, shape.columns
        words = torch.zeros(columns // 16, 2 * rows, dtype=torch.int32, device=device)
        scales = torch.zeros(columns // group, rows, dtype=torch.bfloat16, device=device)
        for tokens in TOKENS:
            config = find(shape.op, shape.rows, columns, group, tokens)
            if config is not None:
                x = torch.zeros(tokens, columns, dtype=torch.bfloat16, device=device)
                launch(shape.op, x, Packed(words, scales), config)

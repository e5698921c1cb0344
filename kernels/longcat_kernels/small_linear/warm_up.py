"""Every configuration that the table has for a model's projections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.small_linear import _triton
from longcat_kernels.small_linear.configs import TOKENS, find

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """Weights of 32 rows: variants depend on the columns only, as 16 divides the rows of all."""
    for shape in sizes.projections:
        weight = torch.zeros(32, shape.columns, dtype=torch.bfloat16, device=device)
        for tokens in TOKENS:
            config = find(shape.op, shape.rows, shape.columns, tokens)
            if config is not None:
                _triton.launch(shape.op, weight[:tokens], weight, config)

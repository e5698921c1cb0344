"""Every configuration that the table has for a model's projections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.fp8_layout import FP8, quantise
from longcat_kernels.small_linear.configs import BLOCK, PAIR_OF, TOKENS, find
from longcat_kernels.small_linear.launch import launch, launch_pair

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """Weights of 32 or 256 rows: variants depend on the columns only, as 16 divides all rows."""
    for shape in sizes.projections:
        fp8 = sizes.fp8_inputs
        weight, scales = _weights(device, shape.columns, fp8)
        x = torch.zeros(TOKENS[-1], shape.columns, dtype=torch.bfloat16, device=device)
        for tokens in TOKENS:
            config = find(shape.op, shape.rows, shape.columns, tokens, fp8)
            if config is not None:
                launch(shape.op, x[:tokens], weight, scales, config)
            pairs = find(PAIR_OF[shape.op], shape.rows, shape.columns, tokens, fp8)
            if pairs is None or scales is None:
                continue
            op, pair = PAIR_OF[shape.op], quantise(x[:tokens])
            for quantised in (True, False) if op == "pair_swiglu" else (True,):
                launch_pair(op, pair, weight, scales, pairs, quantised=quantised)


def _weights(
    device: torch.device | str, columns: int, fp8: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if not fp8:
        return torch.zeros(32, columns, dtype=torch.bfloat16, device=device), None
    weight = torch.zeros(2 * BLOCK, columns, dtype=FP8, device=device)
    return weight, torch.zeros(2, columns // BLOCK, device=device)

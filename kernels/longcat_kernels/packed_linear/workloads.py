"""Seeded 4-bit weights for LongCat-Flash-Lite's dense projections. For tests, tuning, benchmarks.

The shapes are those of `small_linear`.
"""

from __future__ import annotations

import torch

from longcat_kernels.packed_linear import marlin
from longcat_kernels.packed_linear.marlin import Packed
from longcat_kernels.small_linear.workloads import LITE, LITE_TP2, LITE_TP4, LITE_TP8, Shape

RANKS = {1: LITE, 2: LITE_TP2, 4: LITE_TP4, 8: LITE_TP8}
GROUP = 128  # inputs of a scale, in the checkpoints that `sglang-longcat quantize` writes


def make_weight(
    rows: int, columns: int, *, seed: int, device: torch.device | str, group: int = GROUP
) -> Packed:
    """Outputs of inputs about 1 are about 1; every scale is another one."""
    random = torch.Generator(device).manual_seed(seed)
    values = torch.randint(0, 16, (rows, columns), generator=random, device=device)
    scales = torch.rand(rows, columns // group, generator=random, device=device)
    return marlin.pack(values, ((0.5 + scales) / (4.6 * columns**0.5)).bfloat16())


def make_x(tokens: int, columns: int, *, seed: int, device: torch.device | str) -> torch.Tensor:
    random = torch.Generator(device).manual_seed(seed)
    return torch.randn(tokens, columns, generator=random, device=device).bfloat16()


def bytes_moved(tokens: int, shape: Shape, group: int = GROUP) -> int:
    """Weights, scales and x in, the result out."""
    out = shape.rows // 2 if shape.op == "swiglu_linear" else shape.rows
    weights = shape.rows * shape.columns // 2 + 2 * shape.rows * shape.columns // group
    return weights + 2 * tokens * (shape.columns + out)

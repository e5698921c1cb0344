"""The two parts that every block uses: RMSNorm and the dense feed-forward network.

Owns: these two. Attention is in attention.py, the experts are in moe.py, and model.py puts all of
them in order.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.reference.load import Weights


class RmsNorm:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis, in fp32; same shape and dtype."""

    def __init__(self, weights: Weights, *, size: int, eps: float) -> None:
        self.weight, self.eps = weights.take("weight", size), eps

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        inverse = (wide.pow(2).mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return (wide * inverse * self.weight).to(x.dtype)


class Mlp:
    """down(silu(gate(x)) * up(x)): [T, hidden] -> [T, hidden]. Each routed expert is one."""

    def __init__(self, weights: Weights, *, hidden: int, width: int) -> None:
        self.gate = weights.take("gate_proj.weight", width, hidden)
        self.up = weights.take("up_proj.weight", width, hidden)
        self.down = weights.take("down_proj.weight", hidden, width)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)

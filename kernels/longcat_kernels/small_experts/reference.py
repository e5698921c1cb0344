"""The mixture in plain torch: the oracle of the kernels, and the CPU path."""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels.small_linear.reference import swiglu_linear, widen


class Weights(NamedTuple):
    """This rank's experts. gate_up: [E, 2 F, D], gate rows, then up rows; down: [E, D, F]; bf16, or
    float8_e4m3fn with scales [E, 2 F / 128, D / 128] and [E, D / 128, F / 128] fp32."""

    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_scales: torch.Tensor | None = None
    down_scales: torch.Tensor | None = None


def experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    factors: torch.Tensor,
    weights: Weights,
    identity: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for t, k in (ids >= 0).nonzero().tolist():
        gate_up, down, *scales = (None if w is None else w[ids[t, k]] for w in weights)
        assert gate_up is not None
        assert down is not None
        hidden = swiglu_linear(x[t : t + 1], gate_up, scales[0])
        out[t] += factors[t, k] * (hidden.float() @ widen(down, scales[1]).t())[0]
    if identity is not None:
        out += identity[:, None] * x.float()
    return out.to(x.dtype)

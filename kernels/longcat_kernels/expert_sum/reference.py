"""The end of a mixture of experts in plain torch: the kernels' oracle, and the CPU path."""

from __future__ import annotations

import torch


def finalize(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    addend: torch.Tensor | None,
) -> torch.Tensor:
    return _total(routed, ids, x, weight, addend).to(routed.dtype)


def finalize_norm(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    addend: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    total = residual.float() + _total(routed, ids, x, weight, addend)
    residual.copy_(total)
    scale = torch.rsqrt(total.square().mean(dim=1, keepdim=True) + eps)
    return (total * scale * norm_weight.float()).to(routed.dtype)


def add_identity_(out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return out.copy_(out.float() + weight[:, None] * x.float())


def _total(
    routed: torch.Tensor,
    ids: torch.Tensor,
    x: torch.Tensor | None,
    weight: torch.Tensor | None,
    addend: torch.Tensor | None,
) -> torch.Tensor:
    # Not a product with a mask: rows that nobody wrote may hold NaN.
    total = routed.float().masked_fill((ids < 0)[:, :, None], 0.0).sum(dim=1)
    if x is not None and weight is not None:
        total += weight[:, None] * x.float()
    if addend is not None:
        total += addend.float()
    return total

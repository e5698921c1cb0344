"""The variants of the experts' sum that a model uses: the final sum with and without identity part
and addend, with both of them before a norm, the identity part on its own, and a mixture that is
added up already before a norm."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from longcat_kernels.expert_sum import add_identity_, finalize, finalize_norm
from longcat_kernels.lite import EPS

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    routed = torch.zeros(1, sizes.top_k, sizes.hidden, dtype=sizes.dtype, device=device)
    ids = torch.zeros(1, sizes.top_k, dtype=torch.int32, device=device)
    row, weight = routed[:, 0].clone(), torch.zeros(1, device=device)
    for identity, addend in itertools.product((False, True), repeat=2):
        finalize(
            routed,
            ids,
            x=row if identity else None,
            weight=weight if identity else None,
            addend=row if addend else None,
        )
    residual, norm = row.clone(), row[0].clone()
    finalize_norm(routed, ids, row, weight, row, residual=residual, norm_weight=norm, eps=EPS)
    finalize_norm(
        routed[:, :1], ids[:, :1], None, None, row, residual=residual, norm_weight=norm, eps=EPS
    )
    add_identity_(row.clone(), row, weight)

"""Keys of expanded MLA for a prefill: each head's own part beside the rope part that all share.

    k[t, h] = [k_nope[t, h], k_pe[t]]          a copy, so exact

k_nope [T, H, N], any strides but a contiguous last dimension (it is a slice of kv_b's output);
k_pe [T, 1, R], likewise. Returns [T, H, N + R], contiguous.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.mla_keys import reference


def join_keys(k_nope: torch.Tensor, k_pe: torch.Tensor) -> torch.Tensor:
    if use_triton(k_nope):
        from longcat_kernels.mla_keys import _triton

        return _triton.join_keys(k_nope, k_pe)
    return reference.join_keys(k_nope, k_pe)

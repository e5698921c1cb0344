"""Absorbed MLA attention of a few query tokens over paged latents, split over the keys.

    s[t, h, j] = scale * (q_nope[t, h] . c[j] + q_pe[t, h] . r[j])     for j <= positions[t]
    out[t, h]  = sum_j softmax_j(s)[j] c[j]                            in fp32, rounded once

The latent of key j of token t's request b = t // width is row `pages[requests[b], j]` of `latents`:
c the first C columns (kv_lora_rank), r the last R (rope). Decode has width 1; the verification of
a chain of drafts has one row per draft, each seeing the ones before it. Splitting fills the GPU
at batch 1, where one program a request and head block would leave most of it idle. Source: the
flash-decoding scheme; paper section 3 (MLA).

q_nope [T, H, C], q_pe [T, H, R]: bf16, last dimension contiguous; latents [N, C + R] bf16;
pages [slots, context] int32; requests [B] and positions [T] int64. Returns [T, H, C] bf16.
Within 1e-2 of the reference relative to the largest value: the weights of keys are rounded to
bf16 before the second product, as in every flash kernel.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.mla_decode import reference


def mla_decode(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    latents: torch.Tensor,
    pages: torch.Tensor,
    requests: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    width: int = 1,
) -> torch.Tensor:
    """Raises ValueError where T is not B * width."""
    if q_nope.shape[0] != requests.shape[0] * width:
        raise ValueError(
            f"{q_nope.shape[0]} query tokens for {requests.shape[0]} requests of {width}: expected "
            f"{requests.shape[0] * width}. Pass one row per request and window token."
        )
    inputs = (q_nope, q_pe, latents, pages, requests, positions)
    if use_triton(q_nope):
        from longcat_kernels.mla_decode import _triton

        return _triton.mla_decode(*inputs, scale=scale, width=width)
    return reference.mla_decode(*inputs, scale=scale, width=width)

"""Absorbed MLA attention of a few query tokens over paged latents, split over the keys.

    s[t, h, j] = scale * (q_nope[t, h] . c[j] + q_pe[t, h] . r[j])     for j <= positions[t]
    out[t, h]  = sum_j softmax_j(s)[j] c[j]                            in fp32, rounded once
    out[t, h]  = the same times w_vc[h], with w_vc                     rounded again

The latent of key j of token t's request b = t // width is row `pages[requests[b], j]` of `latents`:
c the first C columns (kv_lora_rank), r the last R (rope). Decode has width 1; the verification of
a chain of drafts has one row per draft, each seeing the ones before it. Splitting fills the GPU
at batch 1, where one program a request and head block would leave most of it idle. Source: the
flash-decoding scheme; paper section 3 (MLA).

q_nope [T, H, C], q_pe [T, H, R]: bf16, last dimension contiguous, C and R as `fits` says; latents
[N, C + R] bf16; pages [slots, context] int32; requests [B] and positions [T] int64; w_vc [H, C, V]
bf16 of any strides. Returns bf16 [T, H, C], with w_vc [T, H, V]. Within 1e-2 of the reference
relative to the largest value: the weights of keys are rounded to bf16 before the second product, as
in every flash kernel. The same inputs give the same bits. With programmatic dependent launch all
but the queries are read before the kernel before has finished: that kernel must not be the one that
writes them, and must have waited for those ahead of it before it lets this one start, as
`absorb_query` does.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.mla_decode import reference

__all__ = ["fits", "mla_decode", "pays", "project_values"]

# Tokens, of a request each. With more, adding up the parts and the product with w_vc cost what the
# first launch saves: 38.7 us at 16, flashinfer 36.7.
FEW = 8
WINDOW, WINDOW_CONTEXT = 8, 16384
FUSED = 4  # tokens; more read the value projection for longer than a launch of its own costs


def fits(rank: int, rope: int) -> bool:
    """Whether the kernel takes these widths: powers of two from 16 on, as its products do."""
    return all(width >= 16 and width.bit_count() == 1 for width in (rank, rope))


def pays(requests: int, width: int, context: int) -> bool:
    """Whether a step of `requests` times `width` tokens should come here, where requests may reach
    `context` tokens: every token of a window reads its request's keys again, which a long context
    takes more time for than it saves."""
    if width == 1:
        return requests <= FEW
    return requests == 1 and width <= WINDOW and context <= WINDOW_CONTEXT


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
    w_vc: torch.Tensor | None = None,
) -> torch.Tensor:
    """Raises ValueError where T is not B * width, or w_vc not of q_nope's heads and rank."""
    _check(q_nope, requests, width, w_vc)
    inputs = (q_nope, q_pe, latents, pages, requests, positions)
    if not use_triton(q_nope):
        return reference.mla_decode(*inputs, scale=scale, width=width, w_vc=w_vc)
    from longcat_kernels.mla_decode import launch

    if w_vc is not None and q_nope.shape[0] <= FUSED:
        return launch.decode_values(*inputs, scale=scale, width=width, w_vc=w_vc)
    out = launch.decode(*inputs, scale=scale, width=width)
    return out if w_vc is None else project_values(out, w_vc)


def project_values(latents: torch.Tensor, w_vc: torch.Tensor) -> torch.Tensor:
    """latents [T, H, C], w_vc [H, C, V] -> [T, H, V], contiguous: rows of heads, which the output
    projection reads without another copy."""
    out = latents.new_empty(*latents.shape[:2], w_vc.shape[-1])
    torch.bmm(latents.transpose(0, 1), w_vc, out=out.transpose(0, 1))
    return out


def _check(
    q_nope: torch.Tensor, requests: torch.Tensor, width: int, w_vc: torch.Tensor | None
) -> None:
    if q_nope.shape[0] != requests.shape[0] * width:
        raise ValueError(
            f"{q_nope.shape[0]} query tokens for {requests.shape[0]} requests of {width}: expected "
            f"{requests.shape[0] * width}. Pass one row per request and window token."
        )
    if w_vc is not None and w_vc.shape[:2] != q_nope.shape[1:]:
        raise ValueError(
            f"w_vc {tuple(w_vc.shape)}: expected [{q_nope.shape[1]}, {q_nope.shape[2]}, V], the "
            "heads and the rank of q_nope. Transpose it, or take this rank's heads."
        )

"""Absorbed MLA attention of a few query tokens over paged latents, split over the keys.

    s[t, h, j] = scale * (q_nope[t, h] . c[j] + q_pe[t, h] . r[j])     for j <= positions[t]
    out[t, h]  = sum_j softmax_j(s)[j] c[j]                            in fp32, rounded once
    out[t, h]  = the same times w_vc[h], with w_vc                     rounded again

Token t belongs to request b = t // width. The latent of its key j is row `pages[requests[b], j]` of
`latents`: c is the first C columns (kv_lora_rank), r the last R (rope). Decode has width 1; the
verification of a chain of drafts has one row per draft, each of which sees the ones before it.
Keys are split over programs because one program per request and block of heads would leave most of
a GPU idle at batch 1. Source: the flash-decoding scheme; paper section 3 (MLA).

q_nope [T, H, C], q_pe [T, H, R]: bf16, last dimension contiguous, C and R as `supports` says.
latents [N, C + R] bf16, or FP8 rows of `kv_rows`, [N, bytes] uint8; pages [slots, context] int32;
requests [B] and positions [T] int64; w_vc [H, C, V] bf16 of any strides. Returns bf16 [T, H, C],
with w_vc [T, H, V].

Within 1e-2 of the reference relative to the largest value: the weights of keys are rounded to bf16
before the second product, as in every flash kernel. The same inputs give the same bits. FP8 rows
are widened to bf16, to the values of `kv_rows.unpack`. They come with any number of requests,
window and context, because no other kernel reads them.

With programmatic dependent launch everything but the queries is read before the kernel ahead of
this one has finished. So that kernel must write nothing but queries. It must also have waited for
the kernels ahead of it before it lets this one start, as `absorb_query` does.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.fp8_layout import GROUP, Pair, quantise
from longcat_kernels.mla_decode import reference

__all__ = [
    "gives_pair",
    "is_faster",
    "mla_decode",
    "mla_decode_pair",
    "project_values",
    "supports",
]

# Tokens, of one request each. With more of them the sum of the shares and the product with w_vc
# cost what the first launch saves: 38.7 us at 16, flashinfer 36.7.
FEW = 8
# Windows of 4 tokens of one request with 8K, 16K, 32K and 128K cached: 21, 30, 49 and 159 us,
# flashinfer 29, 37, 46 and 93. fa3 takes 5 more than flashinfer.
WINDOW, WINDOW_CONTEXT = 8, 32768
# Tokens. With more, reading the value projection for each costs more than a launch of its own.
FUSED = 4
HALVED = 2  # tokens up to which two programs share the values of a head


def supports(rank: int, rope: int) -> bool:
    """Whether the kernel can run with these widths: its products take powers of two from 16 on."""
    return all(width >= 16 and width.bit_count() == 1 for width in (rank, rope))


def is_faster(requests: int, width: int, context: int) -> bool:
    """Whether a step of `requests` times `width` tokens was faster here than with flashinfer, if
    requests may have up to `context` tokens. Every token of a window reads its request's keys
    again, which costs more than it saves in a long context. For bf16 rows."""
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


def gives_pair(tokens: int, values: int) -> bool:
    """Whether `mla_decode_pair` takes so many tokens and columns of a head: one program has to have
    all of a head's values, and these have to be one group of 128."""
    return HALVED < tokens <= FUSED and values == GROUP


def mla_decode_pair(
    *inputs: torch.Tensor, scale: float, width: int = 1, w_vc: torch.Tensor
) -> Pair:
    """`mla_decode` with the same inputs, rounded to bf16 and quantised: q [T, H * V] and scales
    (`fp8_layout`). Raises ValueError for what `mla_decode` or `gives_pair` refuses."""
    q_nope, _, _, _, requests, _ = inputs
    _check(q_nope, requests, width, w_vc)
    if not gives_pair(q_nope.shape[0], w_vc.shape[-1]):
        raise ValueError(
            f"{q_nope.shape[0]} tokens, {w_vc.shape[-1]} values a head: expected {HALVED + 1} to "
            f"{FUSED} tokens and {GROUP} values. Use mla_decode, and quantise its result."
        )
    if not use_triton(q_nope):
        values = reference.mla_decode(*inputs, scale=scale, width=width, w_vc=w_vc)
        return quantise(values.flatten(1))
    from longcat_kernels.mla_decode import launch

    return launch.decode_pair(*inputs, scale=scale, width=width, w_vc=w_vc)


def project_values(latents: torch.Tensor, w_vc: torch.Tensor) -> torch.Tensor:
    """latents [T, H, C], w_vc [H, C, V] -> [T, H, V], contiguous, so that the output projection
    reads a token's heads as one row without another copy."""
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

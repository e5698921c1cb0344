"""The two launches of MLA decode: numbers of programs, choice of the kernel, and arguments.

The kernels are in `_triton.py` and, for Hopper, in `_hopper.py` and `_hopper_fp8.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from longcat_kernels import kv_rows
from longcat_kernels.dispatch import is_hopper, pdl_options
from longcat_kernels.fp8_layout import FP8, Pair, scale_rows, scales_of
from longcat_kernels.mla_decode import FUSED, HALVED, _triton

LOG2_E = 1.4426950408889634
BLOCK_KEYS = 64  # 64 x 576 bf16: 72 KiB
PROGRAMS = 132  # one per SM of a Hopper GPU: two blocks and the queries fill its shared memory
LEAST_TOKENS = 32  # of the vectors that deal out programs: a warp's width
WARPS = 8
# The second launch: shares that a program reads at a time, and its columns. With 128 columns each
# program would have to find its shares and their weights for fewer columns: that took 7.6 instead
# of 3.4 us for 8 tokens.
CHUNK, COLUMNS, COMBINE_WARPS = 8, 512, 4
# With the value projection a program needs all columns of its head's latent, 1 KB a share. Up to
# HALVED tokens a program has half of a head's 128 value columns, so that the 2 MB of a token's 64
# shares are read twice; quarters would read them four times. From 3 tokens on it has all of them,
# because then the weights are what every token reads.
VALUE_CHUNK, VALUE_WARPS = 16, 8
VALUE_COLUMNS, MORE_VALUE_COLUMNS = 64, 128
AHEAD = 3  # chunks in flight


class Partial(NamedTuple):
    """What the first launch writes, and the arguments of the second."""

    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # latents, lse, positions
    sizes: tuple[int, int, int]  # tokens, heads, programs
    options: dict[str, Any]


def decode(*inputs: torch.Tensor, scale: float, width: int) -> torch.Tensor:
    """The latents [T, H, C]. inputs: the public function's, from q_nope to positions."""
    tokens, heads, rank = inputs[0].shape
    out = inputs[0].new_empty((tokens, heads, rank))
    if not tokens:
        return out
    partial = _attend(*inputs, scale=scale, width=width)
    columns = min(COLUMNS, rank)
    _triton._combine_kernel[(tokens * heads, rank // columns)](
        *partial.tensors,
        out,
        *partial.sizes,
        CHUNK=CHUNK,
        COLUMNS=columns,
        num_warps=COMBINE_WARPS,
        **partial.options,
    )
    return out


def decode_values(
    *inputs: torch.Tensor, scale: float, width: int, w_vc: torch.Tensor
) -> torch.Tensor:
    """The values [T, H, V]. w_vc [H, C, V] is read before the wait for the kernel ahead, so that
    kernel may not be the one that writes it."""
    out = inputs[0].new_empty((*inputs[0].shape[:2], w_vc.shape[-1]))
    _decode_values(inputs, scale, width, w_vc, out, None)
    return out


def decode_pair(*inputs: torch.Tensor, scale: float, width: int, w_vc: torch.Tensor) -> Pair:
    """The same values as a pair of [T, H * V]."""
    tokens, columns = inputs[0].shape[0], inputs[0].shape[1] * w_vc.shape[-1]
    out = inputs[0].new_empty((tokens, columns), dtype=FP8)
    scales = scale_rows(tokens, columns, out.device)
    _decode_values(inputs, scale, width, w_vc, out, scales)
    return out, scales_of(scales, tokens)


def _decode_values(
    inputs: tuple[torch.Tensor, ...],
    scale: float,
    width: int,
    w_vc: torch.Tensor,
    out: torch.Tensor,
    scales: torch.Tensor | None,
) -> None:
    tokens, heads = inputs[0].shape[:2]
    values = w_vc.shape[-1]
    if not tokens:
        return
    partial = _attend(*inputs, scale=scale, width=width)
    most = VALUE_COLUMNS if tokens <= HALVED else MORE_VALUE_COLUMNS
    columns = min(most, triton.next_power_of_2(values))
    _triton._combine_values_kernel[(tokens * heads, triton.cdiv(values, columns))](
        *partial.tensors,
        w_vc,
        out,
        *partial.sizes,
        *w_vc.stride(),
        *((out, 0) if scales is None else (scales, scales.stride(0))),
        VALUES=values,
        CHUNK=VALUE_CHUNK,
        COLUMNS=columns,
        QUANTISE=scales is not None,
        num_warps=VALUE_WARPS,
        **partial.options,
    )


def programs_for(tokens: int) -> int:
    """At least one program for each token, and as many again for tokens with many keys."""
    return max(PROGRAMS, 2 * tokens)


def variant(tokens: int) -> tuple[int, ...]:
    """What a step's number of tokens decides about the kernels that it launches."""
    sizes = _tokens_block(tokens), triton.next_power_of_2(programs_for(tokens))
    return (*sizes, tokens <= HALVED, tokens <= FUSED)


def _tokens_block(tokens: int) -> int:
    return max(LEAST_TOKENS, triton.next_power_of_2(tokens))


def _attend(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    latents: torch.Tensor,
    pages: torch.Tensor,
    requests: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    width: int,
) -> Partial:
    tokens, heads, rank = q_nope.shape
    programs = programs_for(tokens)
    partial = q_nope.new_empty((programs, heads, rank))
    lse = q_nope.new_empty((heads, programs), dtype=torch.float32)
    sizes = tokens, heads, programs
    rows = kv_rows.parts(latents, rank, q_pe.shape[-1])
    launch = {
        "TOKENS": _tokens_block(tokens),
        "KEYS": BLOCK_KEYS,
        "RANK": rank,
        **pdl_options(q_nope),
    }
    _kernel_for(q_nope, q_pe, latents)[(programs,)](
        q_nope,
        q_pe,
        *rows,
        pages,
        requests,
        positions,
        partial,
        lse,
        scale * LOG2_E,
        *sizes,
        q_nope.stride(0),
        q_nope.stride(1),
        q_pe.stride(0),
        q_pe.stride(1),
        rows.stride,
        pages.stride(0),
        WIDTH=width,
        HEADS=max(16, triton.next_power_of_2(heads)),
        ROPE=q_pe.shape[-1],
        FP8=kv_rows.is_fp8(latents),
        num_warps=WARPS,
        **launch,
    )
    most = triton.next_power_of_2(programs)
    return Partial((partial, lse, positions), sizes, {**launch, "MOST": most, "AHEAD": AHEAD})


def _kernel_for(q_nope: torch.Tensor, q_pe: torch.Tensor, latents: torch.Tensor) -> Any:
    if is_hopper(q_nope):
        from longcat_kernels.mla_decode import _hopper, _hopper_fp8

        if kv_rows.is_fp8(latents):
            if _hopper_fp8.supports(q_nope, q_pe):
                return _hopper_fp8._hopper_fp8_kernel
        elif _hopper.supports(q_nope, q_pe, latents):
            return _hopper._hopper_kernel
    return _triton._split_kernel

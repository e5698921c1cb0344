"""The variants of MLA decode that serving uses: one for each window width, and a second launch that
multiplies by w_vc for few tokens and does not for more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from longcat_kernels.dispatch import is_hopper
from longcat_kernels.mla_decode import (
    FEW,
    gives_pair,
    is_faster,
    mla_decode,
    mla_decode_pair,
    supports,
    workloads,
)

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """Only bf16 models take it; see `use_mla_decode` in sglang_longcat."""
    if sizes.dtype != torch.bfloat16 or not supports(sizes.kv_lora, sizes.rope):
        return
    shape = {"heads": sizes.heads, "rank": sizes.kv_lora}
    w_vc = workloads.make_values(seed=0, device=device, values=sizes.values, **shape)
    if sizes.fp8_kv and sizes.split_tokens is None:
        raise ValueError(
            "FP8 KV rows without split_tokens: only our kernel reads them, so every step takes it. "
            "Give the tokens of the largest decode or verify step."
        )
    if sizes.split_tokens is None and not is_hopper(w_vc):
        return  # serving uses these kernels on other GPUs only if a switch says so
    for requests, width in _steps(sizes):
        inputs = workloads.make_inputs(
            [width] * requests,
            seed=0,
            device=device,
            width=width,
            rope=sizes.rope,
            fp8=sizes.fp8_kv,
            **shape,
        )
        # A backend that reads FP8 rows leaves the product with w_vc to SGLang.
        for values in (w_vc, None) if sizes.fp8_kv else (w_vc,):
            mla_decode(*inputs, scale=workloads.SCALE, width=width, w_vc=values)
        if sizes.fp8_inputs and gives_pair(requests * width, sizes.values):
            mla_decode_pair(*inputs, scale=workloads.SCALE, width=width, w_vc=w_vc)


def _steps(sizes: Sizes) -> Iterator[tuple[int, int]]:
    """Requests and width of each step. With FP8 rows a step may be large: one for each variant."""
    from longcat_kernels.mla_decode.launch import variant

    known = set()
    for requests, width in _all_steps(sizes):
        key = (width, *variant(requests * width)) if sizes.fp8_kv else (requests, width)
        if key not in known:
            known.add(key)
            yield requests, width


def _all_steps(sizes: Sizes) -> Iterator[tuple[int, int]]:
    for width in sizes.windows:
        if sizes.split_tokens is None:
            most = max(
                (n for n in range(1, FEW + 1) if is_faster(n, width, sizes.context)), default=0
            )
        else:
            most = sizes.split_tokens // width
        yield from ((requests, width) for requests in range(1, most + 1))

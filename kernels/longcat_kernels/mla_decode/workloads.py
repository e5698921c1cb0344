"""Seeded inputs of MLA decode, at LongCat-Flash-Lite's sizes. For tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch

from longcat_kernels import kv_rows
from longcat_kernels.lite import HEADS, KV_LORA, NOPE, ROPE, VALUES

SCALE = (NOPE + ROPE) ** -0.5


class Inputs(NamedTuple):
    """The positional arguments of `mla_decode`."""

    q_nope: torch.Tensor
    q_pe: torch.Tensor
    latents: torch.Tensor
    pages: torch.Tensor
    requests: torch.Tensor
    positions: torch.Tensor


def make_inputs(
    lengths: list[int],
    *,
    seed: int,
    device: torch.device | str,
    width: int = 1,
    heads: int = HEADS,
    rank: int = KV_LORA,
    rope: int = ROPE,
    fp8: bool = False,
) -> Inputs:
    """Requests of `lengths` cached tokens, of which the last `width` are the queries. Tokens lie on
    pages in random order, and no request owns slot 0 or row 0. fp8: rows of the KV pool."""
    random = torch.Generator(device=device).manual_seed(seed)
    requests, context = len(lengths), max([*lengths, 1])
    rows = sum(lengths) + 1
    order = torch.randperm(rows - 1, generator=random, device=device) + 1
    pages = torch.zeros(requests + 1, context, dtype=torch.int32, device=device)
    slots = torch.randperm(requests, generator=random, device=device) + 1
    begin = 0
    for slot, length in zip(slots.tolist(), lengths, strict=True):
        pages[slot, :length] = order[begin : begin + length].int()
        begin += length
    latents = torch.randn(rows, rank + rope, generator=random, device=device).bfloat16()
    latents = kv_rows.pack(latents, rank) if fp8 else latents
    shape = (requests * width, heads)
    q_nope = torch.randn(*shape, rank, generator=random, device=device).bfloat16()
    q_pe = torch.randn(*shape, rope, generator=random, device=device).bfloat16()
    last = torch.tensor(lengths, dtype=torch.int64, device=device)[:, None]
    positions = last - width + torch.arange(width, device=device)
    return Inputs(q_nope, q_pe, latents, pages, slots, positions.flatten())


def make_values(
    *,
    seed: int,
    device: torch.device | str,
    heads: int = HEADS,
    rank: int = KV_LORA,
    values: int = VALUES,
) -> torch.Tensor:
    """w_vc [H, C, V], transposed as SGLang keeps it: neighbours in memory belong to C, the rank."""
    random = torch.Generator(device=device).manual_seed(seed)
    weight = torch.randn(heads, values, rank, generator=random, device=device)
    return (weight / rank**0.5).bfloat16().transpose(1, 2)


def bytes_moved(lengths: list[int], width: int = 1, *, fp8: bool = False) -> int:
    """Every latent once, queries in, outputs back. w_vc, of 4 MB, is not counted."""
    rows = len(lengths) * width * HEADS
    row = kv_rows.row_width(KV_LORA, ROPE, fp8=fp8) * (1 if fp8 else 2)
    return sum(lengths) * row + 2 * rows * (2 * KV_LORA + ROPE)


def flops(lengths: list[int], width: int = 1) -> int:
    return 2 * sum(lengths) * width * HEADS * (2 * KV_LORA + ROPE)

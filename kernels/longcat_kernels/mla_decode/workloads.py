"""LongCat-Flash-Lite's sizes for MLA decode, and seeded inputs. For tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import torch

HEADS, RANK, ROPE, VALUES = 32, 512, 64, 128
SCALE = 192**-0.5


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
    rank: int = RANK,
    rope: int = ROPE,
) -> Inputs:
    """Requests of `lengths` cached tokens, the last `width` of them the queries; every token lies
    on a page of its own choosing, and no request owns slot or row 0."""
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
    rank: int = RANK,
    values: int = VALUES,
) -> torch.Tensor:
    """w_vc [H, C, V], transposed as SGLang keeps it: neighbours in memory are of the rank."""
    random = torch.Generator(device=device).manual_seed(seed)
    weight = torch.randn(heads, values, rank, generator=random, device=device)
    return (weight / rank**0.5).bfloat16().transpose(1, 2)


def bytes_moved(lengths: list[int], width: int = 1) -> int:
    """Every latent once, queries in, outputs back. Without w_vc, 4 MB more where it is used."""
    rows = len(lengths) * width * HEADS
    return 2 * (sum(lengths) * (RANK + ROPE) + rows * (2 * RANK + ROPE))


def flops(lengths: list[int], width: int = 1) -> int:
    return 2 * sum(lengths) * width * HEADS * (2 * RANK + ROPE)

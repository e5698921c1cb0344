"""What the n-gram operations take: the tokens of a step, and the constants of the hash."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


class Window(NamedTuple):
    """Decode and verify: each of B requests feeds the same number W of tokens.

    tokens: [B*W] int32/int64, request by request; positions: [B*W] int64, consecutive for each
    request; slots: [B] int64.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor


class Prefill(NamedTuple):
    """Request b feeds tokens[starts[b] : starts[b] + lengths[b]].

    tokens: [T] int32/int64; positions: [T] int64; slots: [B] int64; starts and lengths: [B]
    int32/int64, starts ascending. Tokens behind the last request are padding.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor


@dataclass(frozen=True)
class HashParams:
    """Constants of the hash, on one device. n: longest order; `tables` columns of ids.

    powers: [tables, n] int64, V^j mod M_i, 0 for j >= order(i), so that unused look-back drops out.
    moduli: [tables] int64. offsets: [tables] int64, first row of each table in the fused one.
    eos: [E] int64, E >= 1. inverses: [tables] int64, floor(2^64 / M_i): with these the kernel
    divides by one multiplication: the high half of the product is the quotient, or one less.
    """

    powers: torch.Tensor
    moduli: torch.Tensor
    offsets: torch.Tensor
    eos: torch.Tensor
    inverses: torch.Tensor

    @property
    def tables(self) -> int:
        return self.powers.shape[0]

    @property
    def n(self) -> int:
        return self.powers.shape[1]


def make_hash_params(
    *,
    vocab_size: int,
    rows: tuple[int, ...],
    orders: tuple[int, ...],
    eos: tuple[int, ...],
    device: torch.device | str,
) -> HashParams:
    """rows[i] is table i's row count and modulus, orders[i] how many tokens it hashes.

    Raises ValueError for sizes whose sums of products could leave 63 bits (the model's take 44).
    """
    n = max(orders)
    if min(rows) < 2 or n * vocab_size * max(rows) >= 2**63:
        raise ValueError(
            f"{max(rows)} rows and a vocabulary of {vocab_size}: expected at least 2 rows a table "
            "and n * vocabulary * rows below 2^63. Check config.json."
        )
    powers = [
        [pow(vocab_size, j, m) if j < order else 0 for j in range(n)]
        for m, order in zip(rows, orders, strict=True)
    ]
    offsets = [sum(rows[:i]) for i in range(len(rows))]
    as_tensor = lambda values: torch.tensor(values, dtype=torch.int64, device=device)  # noqa: E731
    inverses = [2**64 // m for m in rows]
    return HashParams(*map(as_tensor, (powers, rows, offsets, eos, inverses)))

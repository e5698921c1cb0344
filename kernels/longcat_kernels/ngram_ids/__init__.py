"""N-gram ids: append tokens to the per-slot ring and hash each token with its predecessors.

For token t of a request at absolute position p, with x_0 the token itself and x_j the token at
position p-j, table i of order o and modulus M:

    id[t, i] = offset[i] + (sum_{j<o} x_j * (V^j mod M)) mod M        (int64)

x_j is 0 for p-j < 0, and from the first EOS found at j >= 1 on (an EOS met in look-back cuts it; an
EOS that is the current token still sees its predecessors). Source: paper section 3, eq. 1-3; the
EOS rule is the reference implementation's.

Predecessors come from the batch itself where they are in it, else from `ring[slot, position % R]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.ngram_ids import reference


@dataclass(frozen=True)
class HashTable:
    """Constants of the hash, on one device. n: longest order; `tables` columns of ids.

    powers: [tables, n] int64, V^j mod M_i, 0 for j >= order(i), so that unused look-back drops out.
    moduli: [tables] int64. offsets: [tables] int64, first row of each table in the fused one.
    eos: [E] int64, E >= 1. inverses: [tables] int64, floor(2^64 / M_i): with these the kernel
    divides by one multiplication (the quotient's high half is exact or one too small).
    """

    powers: torch.Tensor
    moduli: torch.Tensor
    offsets: torch.Tensor
    eos: torch.Tensor
    inverses: torch.Tensor

    @property
    def n(self) -> int:
        return self.powers.shape[1]


def make_hash_table(
    *,
    vocab_size: int,
    rows: tuple[int, ...],
    orders: tuple[int, ...],
    eos: tuple[int, ...],
    device: torch.device | str,
) -> HashTable:
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
    return HashTable(*map(as_tensor, (powers, rows, offsets, eos, inverses)))


def window_ids(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
) -> torch.Tensor:
    """Decode and verify: every request feeds the same number of tokens W. Appends, then hashes.

    tokens: [B*W] int32/int64, positions: [B*W] int64 (consecutive per request), slots: [B] int64,
    ring: [S, R] int32, R >= W + n - 1. Returns ids [B*W, tables] int64. Exact.
    """
    width = window_width(tokens, slots, ring, table)
    if use_triton(tokens):
        from longcat_kernels.ngram_ids._triton import launch

        return launch(tokens, positions, slots, slots, slots, ring, table, width)
    return reference.window_ids(tokens, positions, slots, ring, table)


def window_width(
    tokens: torch.Tensor, slots: torch.Tensor, ring: torch.Tensor, table: HashTable
) -> int:
    """Tokens a request. ValueError if they are not the same for each, or do not fit the ring."""
    width, rest = divmod(tokens.shape[0], max(slots.shape[0], 1))
    if rest:
        raise ValueError(
            f"{tokens.shape[0]} tokens of {slots.shape[0]} requests: expected the same number of "
            "tokens for each; use the extend op for ragged batches."
        )
    if width + table.n - 1 > ring.shape[1]:
        raise ValueError(
            f"a window of {width} tokens does not fit the ring of {ring.shape[1]}: "
            f"expected at most {ring.shape[1] - table.n + 1} tokens a request."
        )
    return max(width, 1)


def extend_ids(
    tokens: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    ring: torch.Tensor,
    table: HashTable,
) -> torch.Tensor:
    """Prefill: request b feeds tokens[starts[b] : starts[b]+lengths[b]]. Hashes, then appends.

    tokens: [T], positions: [T] int64, slots: [B] int64, starts and lengths: [B] int32/int64 with
    starts ascending; tokens past the last request are padding: their ids are in range and unused.
    Returns ids [T, tables] int64. Exact.
    """
    if use_triton(tokens):
        from longcat_kernels.ngram_ids._triton import launch

        return launch(tokens, positions, slots, starts, lengths, ring, table, width=0)
    return reference.extend_ids(tokens, positions, slots, starts, lengths, ring, table)


def seed(
    ring: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
) -> None:
    """Put tokens[i] at ring[slots[i], positions[i] % R]; [N] each. What another slot computed."""
    ring[slots, positions % ring.shape[1]] = tokens.to(ring.dtype)

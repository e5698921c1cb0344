"""LongCat-Flash-Lite's sizes for the n-gram ids, and seeded inputs. For tests, benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longcat_kernels.ngram_ids import HashTable, make_hash_table

VOCAB = 131_072
RATIO = 78
ORDERS = (2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4)
TABLES = len(ORDERS)
N = max(ORDERS)
ROWS = tuple(RATIO * VOCAB + 2 * i + 1 for i in range(TABLES))
TOTAL_ROWS = sum(ROWS)
CONTEXT = 327_680
EOS = (2,)
RING = 16  # n-1 predecessors and a verify window of up to 13 tokens

DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
VERIFY_WIDTH = 4
PREFILL_TOKENS = 8192


@dataclass(frozen=True)
class Inputs:
    """One batch as the op takes it; see `window_ids` and `extend_ids` for the shapes."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    ring: torch.Tensor


def lite_table(device: torch.device | str, eos: tuple[int, ...] = EOS) -> HashTable:
    return make_hash_table(vocab_size=VOCAB, rows=ROWS, orders=ORDERS, eos=eos, device=device)


def make_inputs(lengths: Sequence[int], *, seed: int, device: torch.device | str) -> Inputs:
    """Request b feeds lengths[b] random tokens into slot b+1 from a random position on.

    Every ring cell holds a token; one token in eight is an EOS, and slot 0 is nobody's.
    """
    random = torch.Generator().manual_seed(seed)
    count, requests = sum(lengths), len(lengths)
    sizes = torch.tensor(lengths)
    first = torch.randint(0, CONTEXT - max(lengths, default=0), (requests,), generator=random)
    starts = sizes.cumsum(0) - sizes
    within = torch.arange(count) - starts.repeat_interleave(sizes)
    return Inputs(
        tokens=_tokens((count,), random).to(device),
        positions=(first.repeat_interleave(sizes) + within).to(device),
        slots=torch.arange(1, requests + 1).to(device),
        starts=starts.to(device),
        lengths=sizes.to(device),
        ring=_tokens((requests + 1, RING), random).to(torch.int32).to(device),
    )


def _tokens(shape: tuple[int, ...], random: torch.Generator) -> torch.Tensor:
    tokens = torch.randint(0, VOCAB, shape, generator=random)
    ends = torch.randint(0, 8, shape, generator=random) == 0
    return tokens.masked_fill(ends, EOS[0])


def bytes_moved(tokens: int, requests: int) -> int:
    """Token and position in, ids out, a ring cell written; slot and look-back read per request."""
    return tokens * (8 + 8 + 8 * TABLES + 4) + requests * (8 + 4 * (N - 1))


def flops(tokens: int) -> int:
    """Integer: product, remainder and sum per look-back, then a remainder and a sum a table."""
    return tokens * (3 * sum(ORDERS) + 2 * TABLES)

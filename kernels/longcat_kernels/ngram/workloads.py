"""Seeded inputs of the n-gram operations, at LongCat-Flash-Lite's sizes. For tests and benchmarks.

`bytes_moved` and `flops` are the ids', `row_bytes_moved` the rows'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longcat_kernels.lite import (
    CONTEXT,
    EOS,
    NGRAM_N,
    NGRAM_ORDERS,
    NGRAM_ROWS,
    NGRAM_TABLES,
    RING,
    VOCAB,
)
from longcat_kernels.ngram import HashParams, Prefill, Window, make_hash_params
from longcat_kernels.row_table import RowTable, quantise_fp8, quantise_int4, row_scales

DECODE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
ROW_DECODE_BATCHES = (1, 4, 16, 64, 256, 512, 1024)
VERIFY_WIDTH = 4
PREFILL_TOKENS = 8192


@dataclass(frozen=True)
class Inputs:
    """One batch and its ring; see `Window` and `Prefill` for the shapes."""

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    ring: torch.Tensor

    @property
    def window(self) -> Window:
        """For requests of equal lengths."""
        return Window(self.tokens, self.positions, self.slots)

    @property
    def prefill(self) -> Prefill:
        return Prefill(*self.window, self.starts, self.lengths)


def lite_params(
    device: torch.device | str,
    *,
    rows: tuple[int, ...] = NGRAM_ROWS,
    eos: tuple[int, ...] = EOS,
) -> HashParams:
    """The model's hash, or that of tables with other numbers of rows."""
    return make_hash_params(
        vocab_size=VOCAB, rows=rows, orders=NGRAM_ORDERS, eos=eos, device=device
    )


def make_inputs(lengths: Sequence[int], *, seed: int, device: torch.device | str) -> Inputs:
    """Request b feeds lengths[b] random tokens into slot b+1 from a random position on.

    Every ring cell holds a token; one token in eight is an EOS; no request owns slot 0.
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


def make_rows(count: int, columns: int, kind: str, *, seed: int, device: str) -> RowTable:
    """`count` random rows of the given kind: bf16, fp32, or fp8 and int4 (both giving bf16)."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(count, columns, generator=random)
    if kind == "fp8":
        storage = quantise_fp8(weight, row_scales(weight)).to(device)
        return RowTable(storage, columns, torch.bfloat16, "fp8")
    if kind == "int4":
        return RowTable(quantise_int4(weight).to(device), columns, torch.bfloat16, "int4")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[kind]
    return RowTable(weight.to(device, dtype), columns, dtype)


def bytes_moved(tokens: int, requests: int) -> int:
    """Token and position in, ids out, a ring cell written; slot and look-back read per request."""
    return tokens * (8 + 8 + 8 * NGRAM_TABLES + 4) + requests * (8 + 4 * (NGRAM_N - 1))


def flops(tokens: int) -> int:
    """Integer: product, remainder and sum per look-back, then a remainder and a sum a table."""
    return tokens * (3 * sum(NGRAM_ORDERS) + 2 * NGRAM_TABLES)


def row_bytes_moved(tokens: int, rows: RowTable) -> int:
    """Rows read and written; ids, tokens and the ring are below 2 % of them."""
    item = rows.storage.element_size()
    return tokens * NGRAM_TABLES * (rows.stride * item + rows.columns * rows.dtype.itemsize)

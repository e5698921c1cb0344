"""The N-gram embedding's look-up: append tokens to the ring, hash them, gather the tables' rows.

For token t of a request at absolute position p, with x_0 the token itself and x_j the token at
position p-j, table i of order o and modulus M:

    id[t, i] = offset[i] + (sum_{j<o} x_j * (V^j mod M)) mod M        (int64)
    out[t]   = concat_i rows[id[t, i]]                                [T, tables * columns]

x_j is 0 for p-j < 0, and from the first EOS found at j >= 1 on (an EOS met in look-back cuts it; an
EOS that is the current token still sees its predecessors). Source: paper section 3, eq. 1-3; the
EOS rule is the reference implementation's.

Predecessors come from the batch itself where they are in it, else from `ring[slot, position % R]`.
`window_*` are for decode and verify steps, `extend_*` for prefills. `*_rows` do all three steps in
one launch, `*_ids` leave out the last. The rows may lie in GPU memory or in pinned host memory,
which a CUDA kernel reads in place: a token takes 12 rows of 512 bytes. `row_table` has their
layout.

All results are exact: bf16 and fp32 rows are copied, fp8 and int4 rows are multiplied in fp32 and
rounded once.
"""

from __future__ import annotations

import torch

from longcat_kernels.dispatch import use_triton
from longcat_kernels.ngram import reference
from longcat_kernels.ngram.inputs import HashParams, Prefill, Window, make_hash_params
from longcat_kernels.row_table import RowTable

__all__ = [
    "HashParams",
    "Prefill",
    "Window",
    "extend_ids",
    "extend_rows",
    "make_hash_params",
    "seed",
    "window_ids",
    "window_rows",
    "window_width",
]


def window_ids(window: Window, ring: torch.Tensor, params: HashParams) -> torch.Tensor:
    """Appends, then hashes. ring: [S, R] int32, R >= W + n - 1. Returns ids [B*W, tables] int64.

    ValueError as `window_width`.
    """
    width = window_width(window, ring, params)
    if use_triton(window.tokens):
        from longcat_kernels.ngram.launch import launch

        return launch(window, ring, params, width=width)
    return reference.window_ids(window, ring, params)


def extend_ids(prefill: Prefill, ring: torch.Tensor, params: HashParams) -> torch.Tensor:
    """Hashes, then appends each request's last R tokens. Returns ids [T, tables] int64; the ids of
    padding are in range, and unused."""
    if use_triton(prefill.tokens):
        from longcat_kernels.ngram.launch import launch

        return launch(prefill, ring, params, width=0)
    return reference.extend_ids(prefill, ring, params)


def window_rows(
    window: Window, ring: torch.Tensor, params: HashParams, rows: RowTable
) -> torch.Tensor:
    """`window_ids`, and the rows of those ids: [B*W, tables * columns] of rows.dtype."""
    width = window_width(window, ring, params)
    if use_triton(window.tokens):
        from longcat_kernels.ngram.launch import launch

        return launch(window, ring, params, width=width, rows=rows)
    return reference.window_rows(window, ring, params, rows)


def extend_rows(
    prefill: Prefill, ring: torch.Tensor, params: HashParams, rows: RowTable
) -> torch.Tensor:
    """`extend_ids`, and the rows of those ids: [T, tables * columns] of rows.dtype."""
    if use_triton(prefill.tokens):
        from longcat_kernels.ngram.launch import launch

        return launch(prefill, ring, params, width=0, rows=rows)
    return reference.extend_rows(prefill, ring, params, rows)


def window_width(window: Window, ring: torch.Tensor, params: HashParams) -> int:
    """Tokens of each request. ValueError if requests have different numbers of tokens, or more than
    fit the ring."""
    tokens, slots = window.tokens, window.slots
    width, rest = divmod(tokens.shape[0], max(slots.shape[0], 1))
    if rest:
        raise ValueError(
            f"{tokens.shape[0]} tokens of {slots.shape[0]} requests: expected the same number of "
            "tokens for each; use the extend op for ragged batches."
        )
    if width + params.n - 1 > ring.shape[1]:
        raise ValueError(
            f"a window of {width} tokens does not fit the ring of {ring.shape[1]}: "
            f"expected at most {ring.shape[1] - params.n + 1} tokens a request."
        )
    return max(width, 1)


def seed(
    ring: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
) -> None:
    """Puts tokens[i] at ring[slots[i], positions[i] % R]; [N] each. For predecessors that were
    computed in another slot."""
    ring[slots, positions % ring.shape[1]] = tokens.to(ring.dtype)

"""The launch of the n-gram kernel, for windows and prefills, with rows and without."""

from __future__ import annotations

import torch
import triton

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.lite import INT4_GROUP
from longcat_kernels.ngram._triton import _ngram_kernel
from longcat_kernels.ngram.inputs import HashParams, Prefill, Window
from longcat_kernels.row_table import RowTable


def launch(
    batch: Window | Prefill,
    ring: torch.Tensor,
    params: HashParams,
    *,
    width: int,
    rows: RowTable | None = None,
) -> torch.Tensor:
    """width: of a window; 0 for a prefill. Returns ids [T, tables], or with `rows` their rows
    [T, tables * columns]."""
    tokens, positions, slots = (tensor.contiguous() for tensor in batch[:3])
    # A window has no starts and lengths. The kernel needs pointers all the same, and reads neither.
    starts, lengths = batch[3:] or (batch.slots, batch.slots)
    columns = rows.columns if rows else 1
    shape = (tokens.shape[0], params.tables * columns)
    out = torch.empty(shape, dtype=rows.dtype if rows else torch.int64, device=tokens.device)
    if tokens.shape[0]:
        _ngram_kernel[(tokens.shape[0],)](
            tokens,
            positions,
            slots,
            starts,
            lengths,
            ring,
            params.powers,
            params.moduli,
            params.offsets,
            params.eos,
            params.inverses,
            rows.elements if rows else out,
            out,
            slots.shape[0],
            params.tables,
            columns,
            rows.stride if rows else 1,
            RING=ring.shape[1],
            N=params.n,
            EOS=params.eos.shape[0],
            WIDTH=width,
            ROWS=rows is not None,
            FORMAT=rows.format if rows else "plain",
            GROUP=INT4_GROUP,
            BLOCK=triton.next_power_of_2(params.tables),
            COLUMNS=triton.next_power_of_2(columns),
            num_warps=4 if rows else 1,
            **pdl_options(tokens),
        )
    return out

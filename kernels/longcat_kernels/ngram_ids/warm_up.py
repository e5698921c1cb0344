"""A window of each width that is served, and a ragged prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from longcat_kernels.ngram_ids import extend_ids, make_hash_table, window_ids

if TYPE_CHECKING:
    from longcat_kernels.warmup import Sizes


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """SGLang's types: everything int64; a prefill's starts and lengths int32 if eager, int64 in a
    CUDA graph's static buffers."""
    table = make_hash_table(
        vocab_size=3,
        rows=(3,) * len(sizes.orders),
        orders=sizes.orders,
        eos=(2,) * sizes.eos,
        device=device,
    )
    ring = torch.zeros(1, sizes.ring, dtype=torch.int32, device=device)
    slot = torch.zeros(1, dtype=torch.int64, device=device)
    for width in sizes.windows:
        tokens = torch.zeros(width, dtype=torch.int64, device=device)
        window_ids(tokens, torch.arange(width, device=device), slot, ring, table)
    for dtype in (torch.int32, torch.int64):
        start = torch.zeros(1, dtype=dtype, device=device)
        extend_ids(slot, slot, slot, start, start + 1, ring, table)

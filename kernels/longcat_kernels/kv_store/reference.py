"""Storing in plain torch: the oracle of the kernel, and the CPU path."""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows
from longcat_kernels.kv_pool import PADDING_SLOT


def round_and_store(
    pool: torch.Tensor, slots: torch.Tensor, latents: torch.Tensor, ropes: torch.Tensor
) -> None:
    slots = slots.long()
    packed = kv_rows.pack(torch.cat((latents, ropes), dim=-1), latents.shape[1])
    flat = pool.view(pool.shape[0], -1)
    flat[slots] = torch.where((slots != PADDING_SLOT)[:, None], packed, flat[slots])
    latents.copy_(kv_rows.unpack(packed, latents.shape[1])[:, : latents.shape[1]])

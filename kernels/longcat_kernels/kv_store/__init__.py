"""bf16 rows into FP8 rows of the KV pool, for steps whose rows `mla_prologue` does not store.

    pool[slots[t]] = pack([latents[t], ropes[t]])        `kv_rows` has the layout and `pack`
    latents[t] = latent of unpack(pool[slots[t]])        in place

A prefill norms and rotates with separate kernels, and then stores its tokens' rows in one launch.
Afterwards it attends to its own tokens. It must see what later steps will see, or the answer would
depend on where a prompt is cut into chunks. Rope parts are stored as they are.
"""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows
from longcat_kernels.dispatch import use_triton
from longcat_kernels.kv_store import reference

__all__ = ["round_and_store"]


def round_and_store(
    pool: torch.Tensor, slots: torch.Tensor, latents: torch.Tensor, ropes: torch.Tensor
) -> None:
    """pool: [S, bytes] or [S, 1, bytes] uint8, FP8 rows of C + R values; slots: [T] int32/int64;
    latents [T, C], ropes [T, R]: last dimension contiguous, bf16 on a GPU. Latents are replaced.
    The row of `kv_pool.PADDING_SLOT` is not written, but its tokens' latents are rounded too; no
    other slot may occur twice. ValueError if the sizes or types do not fit.
    """
    if not kv_rows.is_fp8(pool):
        raise ValueError(
            f"pool is {pool.dtype}: expected FP8 rows, which are bytes (uint8). bf16 rows need no "
            "packing: copy them."
        )
    rows = kv_rows.parts(pool, latents.shape[1], ropes.shape[1])
    if not slots.shape[0] == latents.shape[0] == ropes.shape[0]:
        raise ValueError(
            f"{slots.shape[0]} slots for {latents.shape[0]} latents and {ropes.shape[0]} rope "
            "parts: expected one slot a token. Leave out the rows of tokens without a slot."
        )
    if not use_triton(pool):
        return reference.round_and_store(pool, slots, latents, ropes)
    if not latents.dtype == ropes.dtype == torch.bfloat16:
        raise ValueError(
            f"rows are {latents.dtype} and {ropes.dtype}: expected bf16. Serve the model in bf16, "
            "or keep the KV cache in the model's type."
        )
    from longcat_kernels.kv_store import launch

    return launch.round_and_store(rows, slots, latents, ropes)

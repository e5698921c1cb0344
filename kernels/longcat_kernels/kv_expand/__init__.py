"""FP8 rows of the KV pool as bf16 rows, for attention that reads bf16 alone.

    out[t] = unpack(pool[slots[t]])                      `kv_rows` has the layout and `unpack`

A prefill behind a cached prefix needs its rows as bf16 keys, one chunk after another. The values
are those that `mla_decode` takes for the same rows, bit for bit.
"""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows
from longcat_kernels.dispatch import use_triton
from longcat_kernels.kv_expand import reference

__all__ = ["expand"]


def expand(
    pool: torch.Tensor,
    slots: torch.Tensor,
    *,
    rank: int,
    rope: int,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """pool: [S, bytes] or [S, 1, bytes] uint8, FP8 rows of `rank` and `rope` values; slots: [T]
    int32/int64, in any order, repeated or not. Returns [T, rank + rope] bf16: `out` if it is given,
    contiguous. ValueError if pool or `out` have other shapes or types.
    """
    if not kv_rows.is_fp8(pool):
        raise ValueError(
            f"pool is {pool.dtype}: expected FP8 rows, which are bytes (uint8). bf16 rows need no "
            "expansion: index them."
        )
    rows = kv_rows.parts(pool, rank, rope)
    out = _result(slots, rank + rope) if out is None else out
    _check(out, (slots.shape[0], rank + rope))
    if not use_triton(pool):
        return reference.expand(pool, slots, rank, out)
    from longcat_kernels.kv_expand import launch

    launch.expand(rows, slots, out)
    return out


def _result(slots: torch.Tensor, width: int) -> torch.Tensor:
    return torch.empty(slots.shape[0], width, dtype=torch.bfloat16, device=slots.device)


def _check(out: torch.Tensor, shape: tuple[int, int]) -> None:
    if out.shape != shape or out.dtype != torch.bfloat16 or not out.is_contiguous():
        raise ValueError(
            f"out is {out.dtype} {tuple(out.shape)} of strides {out.stride()}: expected bf16 "
            f"{shape}, contiguous. Pass the first rows of a buffer of that width."
        )

"""How wide a row of the KV pool is. `kv_rows.py` has the layouts.

Imports no torch, so that `sglang_longcat/planning` may read it.
"""

from __future__ import annotations

WORD = 16  # bytes that one load of a kernel takes; all scales of a row lie in one


def row_width(rank: int, rope: int, *, fp8: bool) -> int:
    """Elements of a row: values, or bytes for FP8. ValueError if kernels could not read its
    quarters, or if its parts would not begin at whole words."""
    if not fp8:
        return rank + rope
    if rank < WORD or rank.bit_count() != 1 or 2 * rope % WORD:
        raise ValueError(
            f"FP8 KV rows of {rank} + {rope} values: expected a power of two from {WORD} on, and a "
            f"multiple of {WORD // 2}. Keep the KV cache in bf16."
        )
    return rank + WORD + 2 * rope

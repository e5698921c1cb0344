"""Expansion in Triton: a program widens a few rows."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=["tokens", "stride"],
    do_not_specialize_on_alignment=["slots_ptr"],
)
def _expand_kernel(
    latents_ptr,
    ropes_ptr,
    scales_ptr,
    slots_ptr,
    out_ptr,  # [tokens, RANK + ROPE]
    tokens,
    stride,  # of rows, in words of 16 bytes
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    ROWS: tl.constexpr,
):
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = t < tokens
    word = tl.load(slots_ptr + t, mask=live, other=0).to(tl.int64) * stride
    target = t.to(tl.int64) * (RANK + ROPE)
    angle = tl.arange(0, ROPE)[None, :]
    rope = tl.load(ropes_ptr + word[:, None] * 8 + angle, mask=live[:, None], other=0.0)
    tl.store(out_ptr + target[:, None] + RANK + angle, rope, mask=live[:, None])
    # Three axes: the four quarters of a row have a scale each.
    quarter = tl.arange(0, 4)
    scales = tl.load(
        scales_ptr + word[:, None] * 4 + quarter[None, :], mask=live[:, None], other=0.0
    )
    column = quarter[:, None] * (RANK // 4) + tl.arange(0, RANK // 4)[None, :]
    inside = live[:, None, None]
    q = tl.load(latents_ptr + word[:, None, None] * 16 + column[None, :, :], mask=inside, other=0.0)
    values = (q.to(tl.float32) * scales[:, :, None]).to(tl.bfloat16)
    tl.store(out_ptr + target[:, None, None] + column[None, :, :], values, mask=inside)

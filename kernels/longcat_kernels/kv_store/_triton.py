"""Storing in Triton: a program packs one token's row, and rounds its latent in place."""

from __future__ import annotations

import triton
import triton.language as tl

from longcat_kernels.mla_prologue._triton import _quarters


@triton.jit(
    do_not_specialize=["stride", "latent_stride", "rope_stride"],
    do_not_specialize_on_alignment=["latent_ptr", "rope_ptr", "slots_ptr"],
)
def _store_kernel(
    latent_ptr,  # [T, RANK], read and written
    rope_ptr,  # [T, ROPE]
    slots_ptr,
    latents_ptr,  # the pool's
    ropes_ptr,
    scales_ptr,
    latent_stride,
    rope_stride,
    stride,  # of the pool's rows, in words of 16 bytes
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    column, angle = tl.arange(0, RANK), tl.arange(0, ROPE)
    word = tl.load(slots_ptr + t).to(tl.int64) * stride
    # Slot 0 is the padding slot. Many programs have it in a padded batch, and would all write it.
    used = word > 0
    x = tl.load(latent_ptr + t * latent_stride + column)
    key = tl.load(rope_ptr + t * rope_stride + angle)
    latent, scales = _quarters(x, scales_ptr + word * 4, used, RANK)
    q = latent.to(latents_ptr.dtype.element_ty)
    tl.store(latents_ptr + word * 16 + column, q, mask=(column >= 0) & used)
    tl.store(ropes_ptr + word * 8 + angle, key, mask=(angle >= 0) & used)
    # Rounded values round to themselves. So it does no harm if one thread writes a value before
    # another reads it, which more threads than values would allow.
    rounded = tl.reshape(q.to(tl.float32), (4, RANK // 4)) * scales[:, None]
    out = latent_ptr + t * latent_stride + column
    tl.store(out, tl.reshape(rounded, (RANK,)).to(x.dtype))

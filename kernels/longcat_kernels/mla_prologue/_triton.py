"""MLA's prologue in Triton.

`_norm_and_store_kernel`   two programs a token: one for the query's latent, one for the token's row
                           of the KV pool
`_absorb_query_kernel`     a program per head, block of tokens and tile of latent columns, and one
                           more per head and block of tokens, for rope

Both read their weights before they wait for the kernel ahead of them (programmatic dependent
launch), because no kernel of a step writes weights. launch.py has grids and arguments.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _wait(PDL: tl.constexpr):
    """Before this, a program reads nothing that an earlier kernel wrote, and writes nothing. Then
    the next kernel may start."""
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _norm(x, weight, eps, WIDTH: tl.constexpr):
    """x, weight: fp32 vectors, 0 beyond WIDTH."""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps) * weight


@triton.jit
def _rotate(x, cos, sin, ROWS: tl.constexpr, ROPE: tl.constexpr, NEOX: tl.constexpr):
    """x: fp32 [ROWS, ROPE]; cos, sin: [ROWS, ROPE // 2]."""
    # tl.split takes the last axis apart, which has to be the pair's two elements: (2j, 2j+1) are
    # neighbours, (j, ROPE/2 + j) only after a transposition.
    if NEOX:
        first, second = tl.split(tl.trans(tl.reshape(x, (ROWS, 2, ROPE // 2)), (0, 2, 1)))
    else:
        first, second = tl.split(tl.reshape(x, (ROWS, ROPE // 2, 2)))
    turned = tl.join(first * cos - second * sin, second * cos + first * sin)
    if NEOX:
        turned = tl.trans(turned, (0, 2, 1))
    return tl.reshape(turned, (ROWS, ROPE))


@triton.jit
def _angles(cos_sin_ptr, positions, live, ROPE: tl.constexpr):
    """cos and sin of each position's pairs, [len(positions), ROPE // 2] fp32."""
    pair = tl.arange(0, ROPE // 2)[None, :]
    row = cos_sin_ptr + positions.to(tl.int64)[:, None] * ROPE
    cos = tl.load(row + pair, mask=live[:, None], other=0.0).to(tl.float32)
    sin = tl.load(row + ROPE // 2 + pair, mask=live[:, None], other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def _store_q(
    row,
    weight_ptr,
    out,
    scales,
    scale_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    PDL: tl.constexpr,
):
    """A token's query latent, normed, and with GROUP quantised."""
    column = tl.arange(0, BLOCK)
    live = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32)
    _wait(PDL)
    x = tl.load(row + column, mask=live, other=0.0).to(tl.float32)
    # Rounded to the activations' dtype in any case: quantising here changes no value.
    normed = _norm(x, weight, eps, WIDTH).to(row.dtype.element_ty)
    if GROUP:
        normed = _quantise(normed, scales, scale_stride, WIDTH, BLOCK, GROUP)
    tl.store(out + column, normed.to(out.dtype.element_ty), mask=live)


@triton.jit
def _quantise(x, scales, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """x divided by its groups' scales, which are stored. Groups beyond WIDTH are zeros.
    1e-10 and 448 are FLOOR and LARGEST of `fp8_layout`."""
    groups = tl.reshape(x.to(tl.float32), (BLOCK // GROUP, GROUP))
    amax = tl.maximum(tl.max(tl.abs(groups), axis=1), 1e-10)
    group = tl.arange(0, BLOCK // GROUP)
    tl.store(scales + group.to(tl.int64) * stride, amax / 448.0, mask=group < WIDTH // GROUP)
    return tl.reshape(groups * (448.0 / amax)[:, None], (BLOCK,))


@triton.jit
def _store_kv(
    row,
    weight_ptr,
    position_ptr,
    cos_sin_ptr,
    slot_ptr,
    kv_buffer_ptr,
    ropes_ptr,
    kv_scales_ptr,
    eps,
    kv_stride,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    NEOX: tl.constexpr,
    BLOCK: tl.constexpr,
    FP8: tl.constexpr,
    PDL: tl.constexpr,
):
    """A token's row of the KV pool: the normed latent, with FP8 its scales, the rotated key."""
    column = tl.arange(0, BLOCK)
    live = column < LATENT
    weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32)
    _wait(PDL)
    # The rope helpers take blocks of tokens: here one row, [1, ROPE].
    only, angle = tl.arange(0, 1), tl.arange(0, ROPE)[None, :]
    position, slot = tl.load(position_ptr + only), tl.load(slot_ptr).to(tl.int64)
    x = tl.load(row + column, mask=live, other=0.0).to(tl.float32)
    key = tl.load(row + LATENT + angle).to(tl.float32)
    cos, sin = _angles(cos_sin_ptr, position, only == 0, ROPE)
    # Slot 0 is the padding slot. Many programs have it in a padded batch, and would all write it.
    used = slot > 0
    # Rounded to the activations' dtype in any case: quantising here changes no value.
    latent = _norm(x, weight, eps, LATENT).to(row.dtype.element_ty)
    start = slot * kv_stride
    target, ropes = kv_buffer_ptr + start, ropes_ptr + start
    if FP8:
        # The stride counts words of 16 bytes: see `Rows.stride` of kv_rows.
        target, ropes = kv_buffer_ptr + start * 16, ropes_ptr + start * 8
        latent, _ = _quarters(latent, kv_scales_ptr + start * 4, used, BLOCK)
    tl.store(target + column, latent.to(target.dtype.element_ty), mask=live & used)
    turned = _rotate(key, cos, sin, 1, ROPE, NEOX).to(ropes.dtype.element_ty)
    tl.store(ropes + angle, turned, mask=(angle >= 0) & used)


@triton.jit
def _quarters(x, scales, used, BLOCK: tl.constexpr):
    """x divided by the scales of its quarters, and these scales, which are stored too. Exactly
    `kv_rows.pack`: `div_rn`, because a compiler's `/` is an ulp off, and readers multiply by what
    is stored."""
    quarters = tl.reshape(x.to(tl.float32), (4, BLOCK // 4))
    amax = tl.maximum(tl.max(tl.abs(quarters), axis=1), 1e-10)
    largest = tl.full([4], 448.0, tl.float32)
    quarter = tl.arange(0, 4)
    scale = tl.div_rn(amax, largest)
    tl.store(scales + quarter, scale, mask=(quarter >= 0) & used)
    return tl.reshape(quarters * tl.div_rn(largest, amax)[:, None], (BLOCK,)), scale


# Scalar loads gain nothing from alignment, and without it there are fewer variants to compile.
@triton.jit(
    do_not_specialize=["scale_stride"],
    do_not_specialize_on_alignment=["positions_ptr", "slots_ptr", "scales_ptr"],
)
def _norm_and_store_kernel(
    qkv_ptr,
    q_weight_ptr,
    kv_weight_ptr,
    eps,
    positions_ptr,
    cos_sin_ptr,
    slots_ptr,
    kv_buffer_ptr,  # with FP8 its latents
    ropes_ptr,
    kv_scales_ptr,
    out_ptr,
    scales_ptr,
    qkv_stride,
    kv_stride,
    scale_stride,
    Q: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    NEOX: tl.constexpr,
    Q_BLOCK: tl.constexpr,  # Q, rounded up to a power of two
    LATENT_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,  # columns that share a scale; 0: the query latent is not quantised
    FP8: tl.constexpr,  # rows of the KV pool
    PDL: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    row = qkv_ptr + t * qkv_stride
    if tl.program_id(1) == 0:
        target = out_ptr + t * Q
        scales = scales_ptr + t
        _store_q(row, q_weight_ptr, target, scales, scale_stride, eps, Q, Q_BLOCK, GROUP, PDL)
    else:
        _store_kv(
            row + Q,
            kv_weight_ptr,
            positions_ptr + t,
            cos_sin_ptr,
            slots_ptr + t,
            kv_buffer_ptr,
            ropes_ptr,
            kv_scales_ptr,
            eps,
            kv_stride,
            LATENT,
            ROPE,
            NEOX,
            LATENT_BLOCK,
            FP8,
            PDL,
        )


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["positions_ptr"])
def _absorb_query_kernel(
    q_ptr,
    weight_ptr,
    positions_ptr,
    cos_sin_ptr,
    out_ptr,
    tokens,
    q_stride,
    q_head_stride,
    weight_head_stride,
    weight_row_stride,
    weight_column_stride,
    out_stride,
    out_head_stride,
    NOPE: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    NEOX: tl.constexpr,
    NOPE_BLOCK: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,  # of latent columns; 0: rotate only
    PDL: tl.constexpr,
):
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t = tl.program_id(2) * TOKENS + tl.arange(0, TOKENS)
    live = t < tokens
    q_row = q_ptr + (t.to(tl.int64) * q_stride + head * q_head_stride)[:, None]
    out_row = out_ptr + (t.to(tl.int64) * out_stride + head * out_head_stride)[:, None]
    if tile < TILES:
        # A tile of q_nope @ w_kc: [TOKENS, COLUMNS] of one head.
        k = tl.arange(0, NOPE_BLOCK)
        n = tile * COLUMNS + tl.arange(0, COLUMNS)
        cell = k[:, None] * weight_row_stride + n[None, :] * weight_column_stride
        inside = (k < NOPE)[:, None] & (n < LATENT)[None, :]
        weight = tl.load(weight_ptr + head * weight_head_stride + cell, mask=inside, other=0.0)
        _wait(PDL)
        x = tl.load(q_row + k[None, :], mask=live[:, None] & (k < NOPE)[None, :], other=0.0)
        product = tl.dot(x, weight, input_precision="ieee").to(out_ptr.dtype.element_ty)
        tl.store(out_row + n[None, :], product, mask=live[:, None] & (n < LATENT)[None, :])
    else:
        # The last program of each head and block rotates. There is no weight to read early.
        _wait(PDL)
        positions = tl.load(positions_ptr + t, mask=live, other=0)
        cos, sin = _angles(cos_sin_ptr, positions, live, ROPE)
        tail = tl.arange(0, ROPE)[None, :]
        rope = tl.load(q_row + NOPE + tail, mask=live[:, None], other=0.0).to(tl.float32)
        turned = _rotate(rope, cos, sin, TOKENS, ROPE, NEOX).to(out_ptr.dtype.element_ty)
        tl.store(out_row + LATENT + tail, turned, mask=live[:, None])

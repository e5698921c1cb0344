"""MLA's prologue in Triton.

`_norm_and_store_kernel`: two programs a token, one for the query's latent, one for the row of the
KV pool. `_absorb_query_kernel`: a program per head, block of tokens and tile of latent columns, and
one more per head and block that rotates. Both fetch weights before they wait for the kernel before
them (programmatic dependent launch): nothing on the way to a forward writes weights.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from longcat_kernels.dispatch import pdl_options
from longcat_kernels.fp8_inputs import GROUP, Pair, scale_rows, scales_of

# Tokens a block at least (an MMA's rows) and at most; latent columns a tile: at 32 heads and 512
# columns 256 programs of 16 KiB of weights each, for 132 SMs.
LEAST_TOKENS, MOST_TOKENS, COLUMNS = 16, 64, 64


@triton.jit
def _wait(PDL: tl.constexpr):
    """Nothing that an earlier kernel wrote may be read, and nothing written, before this."""
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
    column = tl.arange(0, BLOCK)
    live = column < WIDTH
    weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32)
    _wait(PDL)
    x = tl.load(row + column, mask=live, other=0.0).to(tl.float32)
    normed = _norm(x, weight, eps, WIDTH).to(row.dtype.element_ty)
    if GROUP:
        normed = _quantise(normed, scales, scale_stride, WIDTH, BLOCK, GROUP)
    tl.store(out + column, normed.to(out.dtype.element_ty), mask=live)


@triton.jit
def _quantise(x, scales, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr):
    """x in units of its groups' scales, which are stored. Groups beyond WIDTH are zeros.
    1e-10 and 448: FLOOR and LARGEST of `fp8_inputs`."""
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
    eps,
    kv_stride,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    NEOX: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    live = column < LATENT
    weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32)
    _wait(PDL)
    one, tail = tl.arange(0, 1), LATENT + tl.arange(0, ROPE)[None, :]
    position, slot = tl.load(position_ptr + one), tl.load(slot_ptr).to(tl.int64)
    x = tl.load(row + column, mask=live, other=0.0).to(tl.float32)
    key = tl.load(row + tail).to(tl.float32)
    cos, sin = _angles(cos_sin_ptr, position, one == 0, ROPE)
    used = slot > 0  # the padding slot: many programs would write it at once
    target = kv_buffer_ptr + slot * kv_stride
    latent = _norm(x, weight, eps, LATENT).to(target.dtype.element_ty)
    tl.store(target + column, latent, mask=live & used)
    turned = _rotate(key, cos, sin, 1, ROPE, NEOX).to(target.dtype.element_ty)
    tl.store(target + tail, turned, mask=(tail > 0) & used)


# Scalar loads gain nothing from alignment, and variants less have to be compiled.
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
    kv_buffer_ptr,
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
            eps,
            kv_stride,
            LATENT,
            ROPE,
            NEOX,
            LATENT_BLOCK,
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
        _wait(PDL)
        positions = tl.load(positions_ptr + t, mask=live, other=0)
        cos, sin = _angles(cos_sin_ptr, positions, live, ROPE)
        tail = tl.arange(0, ROPE)[None, :]
        rope = tl.load(q_row + NOPE + tail, mask=live[:, None], other=0.0).to(tl.float32)
        turned = _rotate(rope, cos, sin, TOKENS, ROPE, NEOX).to(out_ptr.dtype.element_ty)
        tl.store(out_row + LATENT + tail, turned, mask=live[:, None])


def norm_and_store(*inputs: Any) -> torch.Tensor:
    """`inputs` as `_store` takes them, behind the output."""
    qkv, q_weight = inputs[:2]
    out = torch.empty((qkv.shape[0], q_weight.shape[0]), dtype=qkv.dtype, device=qkv.device)
    _store(out, None, *inputs)
    return out


def norm_quantise_and_store(*inputs: Any) -> Pair:
    qkv, q_weight = inputs[:2]
    tokens, q = qkv.shape[0], q_weight.shape[0]
    out = torch.empty((tokens, q), dtype=torch.float8_e4m3fn, device=qkv.device)
    rows = scale_rows(tokens, q, qkv.device)
    _store(out, rows, *inputs)
    return out, scales_of(rows, tokens)


def _store(
    out: torch.Tensor,
    scales: torch.Tensor | None,
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    kv_weight: torch.Tensor,
    eps: float,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    slots: torch.Tensor,
    kv_buffer: torch.Tensor,
    neox: bool,
) -> None:
    tokens, width = qkv.shape
    q, latent = q_weight.shape[0], kv_weight.shape[0]
    if tokens:
        _norm_and_store_kernel[(tokens, 2)](
            qkv,
            q_weight,
            kv_weight,
            eps,
            positions,
            cos_sin,
            slots,
            kv_buffer,
            out,
            out if scales is None else scales,
            # torch may give a single row any stride, and 1 would be a variant of its own.
            qkv.stride(0) if tokens > 1 else width,
            kv_buffer.stride(0),
            0 if scales is None else scales.stride(0),
            Q=q,
            LATENT=latent,
            ROPE=_rope_width(cos_sin),
            NEOX=neox,
            Q_BLOCK=triton.next_power_of_2(q),
            LATENT_BLOCK=triton.next_power_of_2(latent),
            GROUP=0 if scales is None else GROUP,
            num_warps=4,
            **pdl_options(qkv),
        )


def absorb_query(
    q: torch.Tensor,
    w_kc: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    neox: bool,
    *,
    fused: bool,
) -> torch.Tensor:
    (tokens, heads, width), (_, nope, latent) = q.shape, w_kc.shape
    rope = _rope_width(cos_sin)
    out = torch.empty((tokens, heads, latent + rope), dtype=q.dtype, device=q.device)
    if not fused:
        product = out[..., :latent].transpose(0, 1)
        torch.bmm(q[..., :nope].transpose(0, 1), w_kc, out=product)
    block = max(triton.next_power_of_2(tokens), LEAST_TOKENS) if fused else MOST_TOKENS
    block, tiles = min(block, MOST_TOKENS), triton.cdiv(latent, COLUMNS) if fused else 0
    if tokens:
        _absorb_query_kernel[(tiles + 1, heads, triton.cdiv(tokens, block))](
            q,
            w_kc,
            positions,
            cos_sin,
            out,
            tokens,
            q.stride(0) if tokens > 1 else heads * width,
            q.stride(1) if heads > 1 else width,
            *w_kc.stride(),
            out.stride(0),
            out.stride(1),
            NOPE=nope,
            LATENT=latent,
            ROPE=rope,
            NEOX=neox,
            NOPE_BLOCK=triton.next_power_of_2(nope),
            TOKENS=block,
            COLUMNS=COLUMNS,
            TILES=tiles,
            num_warps=4,
            **pdl_options(q),
        )
    return out


def _rope_width(cos_sin: torch.Tensor) -> int:
    width = cos_sin.shape[1]
    if width != triton.next_power_of_2(width) or cos_sin.stride(0) != width:
        raise ValueError(
            f"cos_sin {tuple(cos_sin.shape)} of strides {cos_sin.stride()}: expected contiguous "
            "rows of a power of two elements. Use the separate operators for this model."
        )
    return width

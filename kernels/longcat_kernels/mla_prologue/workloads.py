"""Seeded inputs of MLA's prologue, at LongCat-Flash-Lite's sizes. For tests and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longcat_kernels import kv_rows
from longcat_kernels.fp8_layout import GROUP
from longcat_kernels.lite import HEADS, KV_LORA, NOPE, Q_LORA, ROPE, ROPE_THETA

BATCHES = (1, 2, 4, 8, 16, 30, 32, 64, 128, 256, 512, 1024)  # tokens of a decode or verify step


@dataclass(frozen=True)
class Inputs:
    """One step as both operations take it; see them for the shapes. No token has slot 0."""

    qkv: torch.Tensor
    q_weight: torch.Tensor
    kv_weight: torch.Tensor
    positions: torch.Tensor
    cos_sin: torch.Tensor
    slots: torch.Tensor
    kv_buffer: torch.Tensor
    q: torch.Tensor
    w_kc: torch.Tensor


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
    heads: int = HEADS,
    q_lora: int = Q_LORA,
    kv_lora: int = KV_LORA,
    nope: int = NOPE,
    rope: int = ROPE,
    context: int = 4096,
    fp8_rows: bool = False,
) -> Inputs:
    """All random. The KV pool is too: only its rows in `slots` may change. fp8_rows: of the KV
    pool."""
    random = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=random, device=device) * scale).to(dtype)

    pool = draw(2 * tokens + 4, 1, kv_lora + rope)
    return Inputs(
        qkv=draw(tokens, q_lora + kv_lora + rope, scale=3.0),
        q_weight=draw(q_lora),
        kv_weight=draw(kv_lora),
        positions=torch.randint(0, context, (tokens,), generator=random, device=device),
        cos_sin=angles(context, rope, device),
        slots=torch.randperm(2 * tokens + 3, generator=random, device=device)[:tokens] + 1,
        kv_buffer=kv_rows.pack(pool, kv_lora) if fp8_rows else pool,
        q=draw(tokens, heads, nope + rope),
        # As SGLang lays it out: a column of the latent is contiguous.
        w_kc=draw(heads, kv_lora, nope, scale=nope**-0.5).transpose(1, 2),
    )


def angles(context: int, rope: int, device: torch.device | str) -> torch.Tensor:
    """cos | sin of every position, [context, rope] fp32, without YaRN."""
    frequencies = ROPE_THETA ** (-torch.arange(0, rope, 2, device=device) / rope)
    turned = torch.arange(context, device=device)[:, None] * frequencies
    return torch.cat((turned.cos(), turned.sin()), dim=-1)


def bytes_stored(tokens: int, *, fp8: bool = False, fp8_rows: bool = False) -> int:
    """`norm_and_store`: qkv in; q_lora and KV rows out; weights, angles, indices. fp8: of q_lora;
    fp8_rows: of the KV pool."""
    row = 2 * (Q_LORA + KV_LORA + ROPE) * 2 + ROPE * 4 + 16
    if fp8:
        row += 4 * Q_LORA // GROUP - Q_LORA
    if fp8_rows:
        row += kv_rows.row_width(KV_LORA, ROPE, fp8=True) - 2 * (KV_LORA + ROPE)
    return tokens * row + (Q_LORA + KV_LORA) * 2


def bytes_absorbed(tokens: int) -> int:
    """`absorb_query`: w_kc once; queries in and out, angles, positions."""
    row = HEADS * (NOPE + ROPE + KV_LORA + ROPE) * 2 + ROPE * 4 + 8
    return HEADS * NOPE * KV_LORA * 2 + tokens * row


def flops_absorbed(tokens: int) -> int:
    return 2 * tokens * HEADS * NOPE * KV_LORA

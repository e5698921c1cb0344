"""The prologue's kernels as they are served: each block of tokens, and rope alone.

Only bf16 models take them; see `use_mla_prologue` in sglang_longcat. Two heads stand for any number
of them: Triton tells strides apart only by whether 16 divides them, and 16 divides all of these.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from longcat_kernels import kv_rows
from longcat_kernels.fp8_layout import GROUP
from longcat_kernels.lite import EPS
from longcat_kernels.mla_prologue import (
    FUSED_TOKENS,
    absorb_query,
    norm_and_store,
    norm_quantise_and_store,
)

if TYPE_CHECKING:
    from longcat_kernels.warm_up import Sizes

HEADS = 2


def warm_up(device: torch.device | str, sizes: Sizes) -> None:
    """SGLang's types: positions and slots int64, cos_sin fp32, all else bf16."""
    if sizes.dtype != torch.bfloat16:
        return
    latent, rope = sizes.kv_lora, sizes.rope
    zeros = partial(torch.zeros, device=device, dtype=sizes.dtype)
    cos_sin, zero = torch.zeros(1, rope, device=device), torch.zeros(1, device=device).long()
    pool = zeros(1, 1, latent + rope)
    if sizes.fp8_kv:
        pool = kv_rows.pack(pool, latent)
    quantises = sizes.fp8_inputs and sizes.q_lora % GROUP == 0
    for store in (norm_and_store, norm_quantise_and_store)[: 1 + quantises]:
        store(
            zeros(1, sizes.q_lora + latent + rope),
            zeros(sizes.q_lora),
            zeros(latent),
            eps=EPS,
            positions=zero,
            cos_sin=cos_sin,
            slots=zero,
            kv_buffer=pool,
        )
    w_kc = zeros(HEADS, latent, sizes.nope).transpose(1, 2)
    for tokens in _sizes():
        q = zeros(tokens, HEADS, sizes.nope + rope)
        absorb_query(q, w_kc, positions=zero.expand(tokens).contiguous(), cos_sin=cos_sin)


def _sizes() -> list[int]:
    """Numbers of tokens that take each block size, and the first one that takes torch's product."""
    from longcat_kernels.mla_prologue.launch import LEAST_TOKENS, MOST_TOKENS

    blocks = [n for n in (1 << i for i in range(12)) if LEAST_TOKENS <= n <= MOST_TOKENS]
    return [*sorted({min(n, FUSED_TOKENS) for n in blocks}), FUSED_TOKENS + 1]

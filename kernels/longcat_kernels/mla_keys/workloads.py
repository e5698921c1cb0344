"""LongCat-Flash-Lite's sizes for joined keys, and seeded inputs. For tests and benchmarks."""

from __future__ import annotations

import torch

HEADS, NOPE, ROPE, VALUE, RANK = 32, 128, 64, 128, 512

TOKENS = (1, 128, 1024, 4096, 8192)


def make_inputs(
    tokens: int,
    *,
    seed: int,
    device: torch.device | str,
    heads: int = HEADS,
    nope: int = NOPE,
    rope: int = ROPE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As the projections leave them: keys beside values, the rope part behind the latent."""
    random = torch.Generator(device=device).manual_seed(seed)
    kv = torch.randn(tokens, heads, nope + VALUE, generator=random, device=device).bfloat16()
    latent = torch.randn(tokens, 1, RANK + rope, generator=random, device=device).bfloat16()
    return kv[..., :nope], latent[..., RANK:]


def bytes_moved(tokens: int) -> int:
    return 2 * tokens * (HEADS * (2 * NOPE + ROPE) + ROPE)

"""MLA's rotary embedding on the CPU without YaRN (a hook).

Why: the CPU factory asserts that rope_scaling has the type deepseek_yarn. A config whose
rope_scaling is null therefore does not start, although the plain embedding's torch forward works on
any device.
Upstream: srt/layers/rotary_embedding/factory.py:441 (get_rope_cpu).
Remove when: get_rope_cpu takes rope_scaling=None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

TARGET = "sglang.srt.layers.rotary_embedding.factory.get_rope_cpu"


def register() -> str:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(TARGET, _get_rope_cpu, HookType.AROUND)
    return "rope: torch, with or without YaRN"


def _get_rope_cpu(
    original: Callable[..., torch.nn.Module],
    head_size: int,
    rotary_dim: int,
    max_position: int,
    base: int,
    is_neox_style: bool = True,
    rope_scaling: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    partial_rotary_factor: float = 1.0,
    device: str | None = None,
) -> torch.nn.Module:
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    common = (head_size, rotary_dim, max_position, base, is_neox_style, rope_scaling, dtype)
    if rope_scaling is None:
        return get_rope(*common, partial_rotary_factor)
    return original(*common, partial_rotary_factor, device)

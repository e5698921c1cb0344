"""Rotary positions with YaRN.

Owns: the frequencies, the rotation, and YaRN's two magnitude factors. attention.py uses them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sglang_longcat.config import ConfigError, LongcatConfig

_YARN_REQUIRED = {"factor", "original_max_position_embeddings"}
_YARN_OPTIONAL = {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
_YARN_NAMES = {"rope_type", "type", "rope_theta"}


class Rope:
    """Interleaved rotary embedding: at position t, (x[2j], x[2j+1]) turns by t * inv_freq[j].

    YaRN leaves fast pairs alone, slows the slow ones down by `factor`, and blends in between. It
    also multiplies cos and sin by m(mscale) / m(mscale_all_dim) and the softmax scale by
    m(mscale_all_dim)**2, with m(s) = 0.1 * s * ln(factor) + 1.
    Raises ConfigError for scaling that this model does not use.
    """

    def __init__(self, config: LongcatConfig) -> None:
        dim = config.qk_rope_head_dim
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        self.inv_freq = 1.0 / config.rope_theta**exponents  # [dim / 2]
        self.magnitude, self.softmax_factor = 1.0, 1.0
        if config.rope_scaling is not None:
            self._apply_yarn(config, dict(config.rope_scaling))

    def _apply_yarn(self, config: LongcatConfig, yarn: dict[str, Any]) -> None:
        _check_yarn(yarn)
        factor, all_dim = yarn["factor"], yarn.get("mscale_all_dim") or 0
        slowed = _slowed_share(config, yarn)
        self.inv_freq = self.inv_freq * (1 - slowed) + self.inv_freq / factor * slowed
        self.magnitude = _m(factor, yarn.get("mscale") or 1) / _m(factor, all_dim)
        self.softmax_factor = _m(factor, all_dim) ** 2

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, heads, dim], row t at position t -> rotated, same shape and dtype."""
        angles = torch.arange(len(x), dtype=torch.float32)[:, None, None] * self.inv_freq
        cos, sin = angles.cos() * self.magnitude, angles.sin() * self.magnitude
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return turned.flatten(-2).to(x.dtype)


def _m(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _slowed_share(config: LongcatConfig, yarn: dict[str, Any]) -> Tensor:
    """[dim / 2]: 0 for a pair that keeps its frequency, 1 for one whose frequency is divided by
    `factor`, and a value between them for a blend."""
    dim, original = config.qk_rope_head_dim, yarn["original_max_position_embeddings"]

    def pair_with(turns: float) -> float:
        """The (fractional) index of the pair that makes `turns` turns in the original context."""
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_with(yarn.get("beta_fast", 32))), 0)
    high = min(math.ceil(pair_with(yarn.get("beta_slow", 1))), dim - 1)
    steps = torch.arange(dim // 2, dtype=torch.float32) - low
    return (steps / ((high - low) or 0.001)).clamp(0, 1)


def _check_yarn(yarn: dict[str, Any]) -> None:
    kind = yarn.get("rope_type") or yarn.get("type")
    unknown = set(yarn) - _YARN_REQUIRED - _YARN_OPTIONAL - _YARN_NAMES
    if kind not in ("yarn", "deepseek_yarn") or unknown or not yarn.keys() >= _YARN_REQUIRED:
        raise ConfigError(
            f"rope_scaling {yarn} is not supported: expected rope_type 'yarn' with "
            f"{sorted(_YARN_REQUIRED)} and optionally {sorted(_YARN_OPTIONAL)}. Fix config.json."
        )
    # If only one of the two is given, transformers and SGLang compute different magnitudes.
    if bool(yarn.get("mscale")) != bool(yarn.get("mscale_all_dim")):
        raise ConfigError(f"rope_scaling {yarn}: give both mscale and mscale_all_dim, or neither.")

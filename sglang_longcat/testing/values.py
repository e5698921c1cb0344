"""The random numbers of the small checkpoint.

Owns: the distribution of each kind of tensor, chosen so that the logits show a wrong model:
activations of order 1 throughout, n-gram rows that outweigh the word row, identity and routed
experts that both matter, a correction bias that changes the selection, greedy gaps of order 1. All
numbers are uniform: no libm call, so every machine draws the same bits. `tiny` writes the files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch

from sglang_longcat.checkpoint.layout import is_linear

_WORD_STD = 6.0
_TABLE_STD = 2.5  # after post_proj; twelve of them give 8.7
_BIAS_STD = 0.02  # a softmax score over 48 experts averages 0.02
_ROUTER_GAIN = 1.5  # std of the router logits
_HEAD_GAIN = 3.0  # std of the logits: the best leads by about 0.8 on average
_CONTROL_GAIN = 0.75  # of the lm_head rows of tokens outside text_ids
_FP8_MAX = 448.0


def tensor_value(
    name: str, shape: tuple[int, ...], *, seed: int, text_ids: Sequence[int]
) -> torch.Tensor:
    """The tensor `name`, unquantised: bf16, router in fp32. A pure function of its arguments.

    `text_ids`: tokens that the lm_head favours, so that greedy output reads as text and never
    contains EOS, a control token or a reserved token.
    """
    unit = _uniform(name, shape, seed=seed)
    if "norm." in name:
        return (1 + 0.2 * unit).bfloat16()
    if name.endswith("e_score_correction_bias"):
        return _BIAS_STD * unit
    if name.endswith("router.classifier.weight"):
        return unit * (_ROUTER_GAIN / math.sqrt(shape[1]))
    if name == "lm_head.weight":
        return (unit * _head_gain(shape, text_ids=text_ids)).bfloat16()
    return (unit * _std(name, shape)).bfloat16()


def block_fp8(weight: torch.Tensor, *, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise [o, i] to (fp8 e4m3 [o, i], fp32 scale_inv [ceil(o/block), ceil(i/block)]).

    scale_inv = max|block| / 448, and weight ~ fp8 * scale_inv.
    """
    rows, columns = weight.shape
    grid = (-(-rows // block), -(-columns // block))
    padded = torch.zeros(grid[0] * block, grid[1] * block)
    padded[:rows, :columns] = weight.float()
    blocks = padded.view(grid[0], block, grid[1], block)
    scale = blocks.abs().amax(dim=(1, 3)).clamp_min(1e-12) / _FP8_MAX
    scaled = (blocks / scale[:, None, :, None]).view_as(padded)
    return scaled[:rows, :columns].to(torch.float8_e4m3fn).contiguous(), scale


def _uniform(name: str, shape: tuple[int, ...], *, seed: int) -> torch.Tensor:
    """Mean 0, variance 1. Each tensor has its own generator, so order and threads do not matter."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return (torch.rand(shape, generator=generator) * 2 - 1) * math.sqrt(3)


def _std(name: str, shape: tuple[int, ...]) -> float:
    if ".embedders." in name:
        return 1.0
    if ".post_projs." in name:
        return _TABLE_STD / math.sqrt(shape[1])
    if name.endswith("embed_tokens.weight"):
        return _WORD_STD
    if not is_linear(name):
        raise ValueError(f"no distribution for {name}; add one beside its row in the layout table.")
    return 1 / math.sqrt(shape[1])  # keeps unit variance


def _head_gain(shape: tuple[int, ...], *, text_ids: Sequence[int]) -> torch.Tensor:
    gain = torch.full((shape[0], 1), _CONTROL_GAIN)
    gain[list(text_ids)] = _HEAD_GAIN
    return gain / math.sqrt(shape[1])

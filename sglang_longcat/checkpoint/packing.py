"""The numbers of 4-bit weights: from each published order to the one that the model is built with.

Owns: which bits of a word hold which value, and the checks of scales, zero points and g_idx. Every
format becomes compressed-tensors' order while it is read, so the model has one set of parameters
and SGLang's W4A16 methods (Marlin on a GPU, torch on a CPU) serve all of them. `packed_layout` has
the names and shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from sglang_longcat.checkpoint.headers import CheckpointError
from sglang_longcat.checkpoint.packed_layout import SCALES, ZEROS
from sglang_longcat.quantisation.packed import BITS, MIDDLE, PER_WORD, PackedFormat

# AWQ: bits 4 n .. 4 n + 3 of a word hold the value of column _AWQ_ORDER[n] of its eight columns.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_LARGEST = (1 << BITS) - 1

Parts = Mapping[str, torch.Tensor]  # the tensors of one linear layer by the last part of their name


class PackedWeight(NamedTuple):
    """A weight [o, i] in compressed-tensors' order."""

    values: torch.Tensor  # [o, i/8] int32: bits 4 n .. 4 n + 3 hold input 8 c + n
    scale: torch.Tensor  # [o, i/g]
    zeros: torch.Tensor | None  # [o, i/g] int32 in 0..15; None: MIDDLE everywhere


def unpack(words: torch.Tensor, dim: int) -> torch.Tensor:
    """[.., n, ..] int32 to [.., 8 n, ..] int32 in 0..15, lowest bits first."""
    shape = [1] * (words.dim() + 1)
    shape[dim + 1] = PER_WORD
    shifts = torch.arange(0, 32, BITS, dtype=torch.int32, device=words.device).view(shape)
    return ((words.unsqueeze(dim + 1) >> shifts) & _LARGEST).flatten(dim, dim + 1)


def pack(values: torch.Tensor, dim: int) -> torch.Tensor:
    """The inverse of `unpack`."""
    eighths = values.int().unflatten(dim, (-1, PER_WORD)).unbind(dim + 1)
    words = torch.zeros_like(eighths[0])
    for n, eighth in enumerate(eighths):
        words |= eighth << (BITS * n)
    return words.contiguous()


def unpack_awq(words: torch.Tensor) -> torch.Tensor:
    """[k, n/8] int32 to [k, n] in 0..15."""
    columns = unpack(words, 1).unflatten(1, (-1, PER_WORD))
    result = torch.empty_like(columns)
    result[..., list(_AWQ_ORDER)] = columns
    return result.flatten(1)


def pack_awq(values: torch.Tensor) -> torch.Tensor:
    """The inverse of `unpack_awq`."""
    return pack(values.unflatten(1, (-1, PER_WORD))[..., list(_AWQ_ORDER)].flatten(1), 1)


def standard(parts: Parts, stored: PackedFormat) -> PackedWeight:
    """The layer's weight in compressed-tensors' order, of parts that `check` has passed."""
    values, scale = _values(parts, stored)
    return PackedWeight(values, scale, None if stored.symmetric else _zero_points(parts, stored))


def check(name: str, tensor: torch.Tensor, stored: PackedFormat, weight: tuple[int, ...]) -> None:
    """CheckpointError for numbers in the tensor `name` that the format does not have. weight: the
    layer's shape [o, i]. Values have no wrong numbers."""
    part = name.rpartition(".")[2]
    if part == "g_idx":
        _check_order(name, tensor, stored.group_size)
    elif part == "weight_shape":
        _check_shape(name, tensor, weight)
    elif part in SCALES:
        _check_scales(name, tensor)
    elif part in ZEROS:
        _check_zeros(name, _zero_points({part: tensor}, stored), stored)


def _check_scales(name: str, scales: torch.Tensor) -> None:
    """One scale that is no number makes every logit NaN, which are then served as token 0."""
    if not bool(torch.isfinite(scales).all()):
        wrong = int((~torch.isfinite(scales)).sum())
        raise CheckpointError(
            f"{name} has {wrong} scales that are NaN or infinite; expected finite ones. Download "
            "the file again, or quantise the model again."
        )


def _check_zeros(name: str, zeros: torch.Tensor, stored: PackedFormat) -> None:
    if stored.symmetric and not bool((zeros == MIDDLE).all()):
        raise CheckpointError(
            f"{name} has zero points other than {MIDDLE}, but config.json says that the "
            "quantisation is symmetric. Check that config.json belongs to these weights."
        )
    if bool((zeros > _LARGEST).any()):
        raise CheckpointError(
            f"{name} has a zero point of {_LARGEST + 1}: expected 0 to {_LARGEST}. "
            "Quantise the model again, with another tool or symmetrically."
        )


def dequantise(weight: PackedWeight, group_size: int) -> torch.Tensor:
    """[o, i] fp32: scale * (value - zero)."""
    zeros = MIDDLE if weight.zeros is None else weight.zeros.repeat_interleave(group_size, dim=1)
    scale = weight.scale.float().repeat_interleave(group_size, dim=1)
    return (unpack(weight.values, 1) - zeros) * scale


def _check_order(name: str, g_idx: torch.Tensor, group_size: int) -> None:
    """CheckpointError unless g_idx [i] says that input i is in group i // g."""
    expected = torch.arange(len(g_idx), device=g_idx.device) // group_size
    if not torch.equal(g_idx.to(expected.dtype), expected):
        raise CheckpointError(
            f"{name} reorders the inputs (act-order), but config.json says that nothing does. Use "
            "a checkpoint without act-order."
        )


def _check_shape(name: str, stored: torch.Tensor, expected: tuple[int, ...]) -> None:
    """CheckpointError unless weight_shape [2] says what config.json says."""
    if tuple(stored.tolist()) != expected:
        raise CheckpointError(
            f"{name} says {stored.tolist()}, expected {list(expected)} from config.json. Check "
            "that config.json belongs to these weights."
        )


def _values(parts: Parts, stored: PackedFormat) -> tuple[torch.Tensor, torch.Tensor]:
    if stored.packing == "compressed-tensors":
        return parts["weight_packed"], parts["weight_scale"]
    scale = parts["scales"].t()
    if stored.packing == "gptq":  # the same words, transposed
        return parts["qweight"].t(), scale
    return pack(unpack_awq(parts["qweight"]).t(), 1), scale


def _zero_points(parts: Parts, stored: PackedFormat) -> torch.Tensor:
    """[o, i/g]."""
    if stored.packing == "compressed-tensors":
        return unpack(parts["weight_zero_point"], 0)
    qzeros = parts["qzeros"]
    zeros = unpack(qzeros, 1) if stored.packing == "gptq" else unpack_awq(qzeros)
    return zeros.t() + stored.zero_offset

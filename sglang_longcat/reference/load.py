"""Reads tensors of a checkpoint directory, one at a time, by their published names.

Owns: finding the shard of a tensor, checking its shape, dequantising block FP8, and the record of
which tensors were read. The layers know what the names mean and ask for their own; config.py reads
config.json.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

BLOCK = 128  # rows and columns that share one scale in a block-FP8 weight
SCALE_SUFFIX = "_scale_inv"


class CheckpointError(ValueError):
    """The checkpoint's tensors are not those of the model that its config.json describes."""


def dequantize_block_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    """w[r, c] * scale[r // 128, c // 128] in fp32.

    weight [R, C] float8_e4m3fn, scale [ceil(R/128), ceil(C/128)] fp32 -> [R, C] fp32.
    Raises CheckpointError if the scale's shape does not fit.
    """
    rows, cols = weight.shape
    expected = (-(-rows // BLOCK), -(-cols // BLOCK))
    if scale.shape != expected:
        raise CheckpointError(
            f"an FP8 weight of shape {(rows, cols)} comes with scales {tuple(scale.shape)}; "
            f"expected {expected}, one per 128 x 128 block. "
            "Use a checkpoint with weight_block_size [128, 128]."
        )
    full = scale.float().repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return weight.float() * full[:rows, :cols]


class Checkpoint:
    """All tensors under a directory: `model.safetensors.index.json`, or one .safetensors file."""

    def __init__(self, path: str | Path) -> None:
        self._directory = Path(path)
        self._shard_of = _shards(self._directory)
        self.unread = set(self._shard_of)

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    def any_under(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self._shard_of)

    def read(self, name: str) -> Tensor:
        """The stored tensor. Raises a CheckpointError that names it if it is absent."""
        if name not in self:
            raise CheckpointError(
                f"tensor {name!r} is missing from {self._directory}; config.json calls for it. "
                "Check that every shard was downloaded and that config.json belongs to them."
            )
        # Imported here, because training uses the model without safetensors.
        from safetensors import safe_open

        self.unread.discard(name)
        with safe_open(self._directory / self._shard_of[name], framework="pt") as shard:
            return shard.get_tensor(name)

    def require_all_read(self) -> None:
        """Raises a CheckpointError that lists the tensors for which the model never asked."""
        if self.unread:
            names = sorted(self.unread)
            raise CheckpointError(
                f"{len(names)} tensors are unknown to the model: {', '.join(names[:8])}. "
                "Expected only LongCat-Flash-Lite's names. Check that config.json fits the weights."
            )


def _shards(directory: Path) -> dict[str, str]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        return dict(json.loads(index.read_text())["weight_map"])
    files = sorted(directory.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(
            f"{directory} has no model.safetensors.index.json and {len(files)} .safetensors files; "
            "expected an index, or exactly one file. Check the path."
        )
    from safetensors import safe_open

    with safe_open(files[0], framework="pt") as shard:
        return dict.fromkeys(shard.keys(), files[0].name)


@dataclass(frozen=True)
class Weights:
    """The part of a checkpoint below one name prefix, in the dtype in which the model computes."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    prefix: str = ""

    def under(self, name: str) -> Weights:
        return replace(self, prefix=f"{self.prefix}{name}.")

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Tensor `prefix + name`, dequantised if FP8, in `dtype` (default: the model's).

        Raises CheckpointError if it is missing or its shape is not `shape`.
        """
        full_name = self.prefix + name
        tensor = self.checkpoint.read(full_name)
        if tensor.shape != shape:
            raise CheckpointError(
                f"tensor {full_name!r} has shape {tuple(tensor.shape)}, expected {shape} by "
                "config.json. Check that config.json belongs to these weights."
            )
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = dequantize_block_fp8(tensor, self.checkpoint.read(full_name + SCALE_SUFFIX))
        return tensor.to(dtype or self.dtype)

"""Safetensors headers and the shard index: what a checkpoint says it contains.

Owns: the header format (8 bytes of length, JSON, then data), and the detection of a damaged file by
its size. This file reads no tensor data. `layout` knows what the tensors should be, and `check`
compares.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # the limit of the safetensors library itself
# The types of our checkpoints. I32 holds eight 4-bit values. The size of others is not checked.
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I32": 4, "I64": 8}


class CheckpointError(ValueError):
    """The files of a checkpoint are incomplete, damaged, or not those of its config.json."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    end: int  # of its bytes, counted from the end of the header

    def __str__(self) -> str:
        return f"{list(self.shape)} {self.dtype}"


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file. CheckpointError if it is truncated, too long or
    corrupt."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MAX_HEADER:
            raise CheckpointError(f"{file.name}: no safetensors header in its {size} bytes")
        raw = stream.read(length)
    if len(raw) < length:
        raise CheckpointError(f"{file.name}: truncated to {size} bytes inside its header")
    entries = _parse_header(file.name, raw)
    expected = 8 + length + max((entry.end for entry in entries.values()), default=0)
    if size != expected:
        word = "truncated" if size < expected else "too long"
        raise CheckpointError(f"{file.name}: {word}, {size} bytes; its header says {expected}")
    return entries


def _parse_header(name: str, raw: bytes) -> dict[str, Entry]:
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        entries = {tensor: _entry(value) for tensor, value in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{name}: corrupt header ({error!r})") from error
    return entries


def _entry(value: Mapping[str, object]) -> Entry:
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list) or not isinstance(offsets, list):
        raise TypeError(f"not a tensor entry: {value}")
    begin, end = offsets
    width = _BYTES.get(dtype)
    if width is not None and end - begin != width * math.prod(shape):
        raise ValueError(f"{end - begin} bytes for {shape} {dtype}")
    return Entry(dtype=dtype, shape=tuple(shape), end=end)


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to file name, from the shard index; empty if there is no index."""
    file = path / INDEX_NAME
    if not file.exists():
        return {}
    try:
        weight_map = json.loads(file.read_text())["weight_map"]
        names = {str(tensor): os.fspath(name) for tensor, name in weight_map.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is corrupt ({error!r}); expected a weight_map of tensor to file names. "
            "Download it again."
        ) from error
    return names

"""Quantises a small checkpoint to 4 bits, in each format that is served.

Owns: the rounding (round to nearest, scales and zero points of their own for each group), the
packers, and each format's `quantization_config`. The packers are written for this file, value by
value, so that a mistake in `checkpoint.packing` does not cancel out. `write_packed` also writes
what the packed checkpoint means, unquantised and in fp32, for the oracle.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sglang_longcat.checkpoint.headers import INDEX_NAME
from sglang_longcat.checkpoint.layout import MTP_PREFIX, is_linear
from sglang_longcat.config import LongcatConfig
from sglang_longcat.testing.tiny import TinyOptions, write_tiny

# Random weights give all groups much the same scale, and any order of them the same answers. So
# each group's weights are multiplied by a number between one over this and this.
_SPREAD = 2.0
_AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # the column that each four bits hold, lowest bits first

Quantised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # values, zero points, scales


@dataclass(frozen=True)
class Scheme:
    """A format with its options."""

    method: str  # quant_method, or "auto-round-awq" for AutoRound with AWQ's packing
    group_size: int = 128
    symmetric: bool = True
    left_out: tuple[str, ...] = ()  # modules with this in their names are not quantised
    mtp: bool = False  # quantise the MTP layer

    def quantises(self, module: str) -> bool:
        if module.startswith(MTP_PREFIX) and not self.mtp:
            return False
        return not any(part in module for part in self.left_out)


def write_packed(path: Path, scheme: Scheme, options: TinyOptions | None = None) -> Path:
    """A small packed checkpoint at `path`, and its meaning at `meaning_of(path)`. Returns
    `path`."""
    return pack_checkpoint(write_tiny(path, options), scheme)


def pack_checkpoint(path: Path, scheme: Scheme) -> Path:
    """The same of the unquantised checkpoint at `path`, in its place."""
    shutil.copytree(path, meaning_of(path))
    for shard in sorted(path.glob("*.safetensors")):
        packed: dict[str, torch.Tensor] = {}
        meaning: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(shard).items():
            module = name.removesuffix(".weight")
            if is_linear(name) and scheme.quantises(module):
                values, zeros, scales = quantise(name, tensor, scheme)
                packed |= _named(module, _PACKERS[scheme.method](values, zeros, scales))
                meaning[name] = _dequantised(values, zeros, scales)
            else:
                packed[name] = meaning[name] = tensor
        save_file(packed, shard, metadata={"format": "pt"})
        save_file(meaning, meaning_of(path) / shard.name, metadata={"format": "pt"})
    _write_index(path)
    _add_config(path, scheme)
    return path


def meaning_of(path: Path) -> Path:
    return path.with_name(path.name + "-meaning")


def quantise(name: str, weight: torch.Tensor, scheme: Scheme) -> Quantised:
    """(values [o, i] in 0..15, zero points [o, i/g], scales [o, i/g] bf16). A pure function of its
    arguments."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    draw = torch.Generator().manual_seed(seed)
    groups = weight.float().unflatten(1, (-1, scheme.group_size))
    shape = groups.shape[:2]
    groups = groups * _SPREAD ** (2 * torch.rand(shape, generator=draw) - 1)[..., None]
    zeros = torch.full(shape, 8)
    if not scheme.symmetric:
        zeros = torch.randint(4, 12, shape, generator=draw)
    room = torch.minimum(zeros, 15 - zeros)
    scales = (groups.abs().amax(-1) / room).bfloat16()
    values = (groups / scales.float()[..., None]).round().int() + zeros[..., None]
    return values.clamp(0, 15).flatten(1), zeros, scales


def _dequantised(values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    steps = values.unflatten(1, (zeros.shape[1], -1)) - zeros[..., None]
    return (steps * scales.float()[..., None]).flatten(1)


def pack_words(values: torch.Tensor, dim: int, order: tuple[int, ...] = tuple(range(8))) -> Any:
    """Eight values along `dim` to one int32: bits 4 n .. 4 n + 3 hold number order[n]."""
    size = values.shape[dim] // 8
    words = torch.zeros_like(values.narrow(dim, 0, size), dtype=torch.int64)
    for n, column in enumerate(order):
        words += values.index_select(dim, torch.arange(size) * 8 + column).long() << (4 * n)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _gptq(values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> dict[str, Any]:
    inputs, groups = values.shape[1], scales.shape[1]
    return {
        "qweight": pack_words(values.t(), 0),
        "qzeros": pack_words(zeros.t() - 1, 1),
        "scales": scales.t().half(),
        "g_idx": (torch.arange(inputs) // (inputs // groups)).int(),
    }


def _auto_round(*quantised: torch.Tensor) -> dict[str, Any]:
    packed = _gptq(*quantised)
    del packed["g_idx"]
    return packed


def _awq(values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor) -> dict[str, Any]:
    return {
        "qweight": pack_words(values.t(), 1, _AWQ_COLUMNS),
        "qzeros": pack_words(zeros.t(), 1, _AWQ_COLUMNS),
        "scales": scales.t().half(),
    }


def _compressed_tensors(
    values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor
) -> dict[str, Any]:
    packed = {
        "weight_packed": pack_words(values, 1),
        "weight_scale": scales,
        "weight_shape": torch.tensor(values.shape),
    }
    if bool((zeros != 8).any()):
        packed["weight_zero_point"] = pack_words(zeros, 0)
    return packed


_PACKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "auto-round": _auto_round,
    "auto-round-awq": _awq,
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
}


def _named(module: str, parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {f"{module}.{part}": tensor.contiguous() for part, tensor in parts.items()}


def quantization_config(scheme: Scheme) -> dict[str, Any]:
    """As the tool of each format writes it."""
    common: dict[str, Any] = {"bits": 4, "group_size": scheme.group_size}
    if scheme.method.startswith("auto-round"):
        packing = "awq" if scheme.method.endswith("awq") else "gptq"
        left_out = {f".*{part}.*": {"bits": 16, "data_type": "fp"} for part in scheme.left_out}
        blocks = "model.layers,model.mtp.layers" if scheme.mtp else "model.layers"
        return common | {
            "quant_method": "auto-round",
            "sym": scheme.symmetric,
            "data_type": "int",
            "packing_format": f"auto_round:auto_{packing}",
            "block_name_to_quantize": blocks,
            "extra_config": left_out,
        }
    if scheme.method == "gptq":
        return common | {
            "quant_method": "gptq",
            "sym": scheme.symmetric,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "dynamic": {f"-:.*{part}": {} for part in scheme.left_out},
        }
    if scheme.method == "awq":
        return common | {
            "quant_method": "awq",
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": list(scheme.left_out),
        }
    weights = {
        "num_bits": 4,
        "type": "int",
        "strategy": "group",
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", *(f"re:.*{part}.*" for part in scheme.left_out)],
    }


def _add_config(path: Path, scheme: Scheme) -> None:
    file = path / "config.json"
    config = json.loads(file.read_text()) | {"quantization_config": quantization_config(scheme)}
    LongcatConfig.from_dict(config)
    file.write_text(json.dumps(config, indent=2) + "\n")


def _write_index(path: Path) -> None:
    weight_map = {name: file.name for file, name in _names(path)}
    file = path / INDEX_NAME
    index = json.loads(file.read_text()) | {"weight_map": dict(sorted(weight_map.items()))}
    file.write_text(json.dumps(index, indent=2) + "\n")


def _names(path: Path) -> Iterator[tuple[Path, str]]:
    for shard in sorted(path.glob("*.safetensors")):
        for name in load_file(shard):
            yield shard, name

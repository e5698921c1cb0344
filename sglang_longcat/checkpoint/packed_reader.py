"""Turns the tensors of 4-bit layers into the parameters that the model is built with.

Owns: gathering the tensors of a layer, which arrive in any order, and the names of the result:

    x.weight_packed [o, i/8], x.weight_scale [o, i/g], x.weight_zero_point
    kv_b_proj.weight [o, i]   dequantised

The zero points are [o/8, i/g] for linear layers, and for experts [i/g, o/8] in AWQ's order: SGLang
transposes an expert's tensors but not its zero points, and takes them for AWQ's
(fused_moe_triton/layer.py, _weight_loader_impl; schemes/compressed_tensors_wNa16_moe.py,
moe_awq_to_marlin_zero_points). MLA absorbs kv_b_proj into its queries and outputs, for which it has
to be whole; SGLang would dequantise only AWQ's (models/longcat_flash.py, post_load_weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from sglang_longcat.checkpoint import packed_layout, packing
from sglang_longcat.checkpoint.headers import CheckpointError
from sglang_longcat.checkpoint.layout import is_quantised
from sglang_longcat.checkpoint.packed_layout import DEQUANTISED, Shapes
from sglang_longcat.config import QuantConfig

_CHECKED_ONLY = ("g_idx", "weight_shape")  # not among the model's parameters
Named = tuple[str, torch.Tensor]


class PackedReader:
    """`read` may be called for every load: nothing is kept between loads."""

    def __init__(self, quant: QuantConfig, unquantised: Shapes) -> None:
        """unquantised: the model's tensors before quantisation, `layout.expected_tensors`."""
        assert quant.packed is not None
        self.stored = quant.packed
        self.shapes = {
            name.removesuffix(".weight"): shape
            for name, shape in unquantised.items()
            if is_quantised(name, quant)
        }
        self.optional: Shapes = {}
        for module, shape in self.shapes.items():
            self.optional |= packed_layout.optional_tensors(module, shape, self.stored)
        self.device: torch.device | str = "cpu"  # where AWQ's words are reordered

    def read(self, weights: Iterable[Named]) -> Iterator[Named]:
        """Tensors of other modules pass through. Raises CheckpointError for a layer of which only
        some tensors came, and as `packing`."""
        waiting: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in weights:
            module, _, part = name.rpartition(".")
            if module not in self.shapes:
                yield name, tensor
                continue
            packing.check(name, tensor, self.stored, self.shapes[module])
            if part not in _CHECKED_ONLY:
                parts = waiting.setdefault(module, {})
                parts[part] = tensor
                if parts.keys() == self._needed(module):
                    yield from self._converted(module, waiting.pop(module))
        self._require_nothing_waits(waiting)

    def _needed(self, module: str) -> set[str]:
        names = packed_layout.tensors(module, self.shapes[module], self.stored)
        return {name.rpartition(".")[2] for name in names} - set(_CHECKED_ONLY)

    def check_numbers(self, path: Path) -> None:
        """CheckpointError as `packing.check`, of the safetensors files under `path`. Reads scales,
        zero points and orders, a few percent of the files, and not the values."""
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as shard:
                for name in filter(self._has_numbers, shard.keys()):
                    weight = self.shapes[name.rpartition(".")[0]]
                    packing.check(name, shard.get_tensor(name), self.stored, weight)

    def _has_numbers(self, name: str) -> bool:
        module, _, part = name.rpartition(".")
        return module in self.shapes and part not in packed_layout.VALUES

    def _converted(self, module: str, parts: dict[str, torch.Tensor]) -> Iterator[Named]:
        if self.stored.packing == "awq" or module.endswith(DEQUANTISED):
            parts = {part: tensor.to(self.device) for part, tensor in parts.items()}
        weight = packing.standard(parts, self.stored)
        if module.endswith(DEQUANTISED):
            yield f"{module}.weight", packing.dequantise(weight, self.stored.group_size)
            return
        yield f"{module}.weight_packed", weight.values
        yield f"{module}.weight_scale", weight.scale
        if weight.zeros is not None:
            yield f"{module}.weight_zero_point", _zeros(weight.zeros, ".experts." in module)

    def _require_nothing_waits(self, waiting: dict[str, dict[str, torch.Tensor]]) -> None:
        if waiting:
            module, parts = next(iter(waiting.items()))
            raise CheckpointError(
                f"{len(waiting)} quantised layers came in part: of {module} there are "
                f"{sorted(parts)}, expected {sorted(self._needed(module))}. Send all tensors of a "
                "layer in one update."
            )


def _zeros(zeros: torch.Tensor, of_expert: bool) -> torch.Tensor:
    """zeros [o, i/g]."""
    return packing.pack_awq(zeros.t()) if of_expert else packing.pack(zeros, 0)

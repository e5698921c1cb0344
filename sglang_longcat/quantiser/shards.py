"""One file of the checkpoint at a time, from its bf16 tensors to its packed ones.

Owns: what is in memory. The source is mapped, not read, and unquantised tensors are written from
the mapping. So a file's packed tensors are held, a quarter of its size, and what AutoRound needs
for one weight of each thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sglang_longcat.quantisation.packed import PackedFormat
from sglang_longcat.quantiser import rounding
from sglang_longcat.quantiser.selection import Selection

Tensors = dict[str, torch.Tensor]
Step = Callable[[int], None]  # takes the bytes of the source that are done


@dataclass(frozen=True)
class Worker:
    """Converts files. threads: weights that are quantised at a time."""

    selection: Selection
    threads: int
    step: Step

    def convert(self, source: Path, target: Path) -> tuple[list[str], dict[str, float]]:
        """Writes `target`. Returns the names of its tensors, and the relative error of each
        quantised layer. Raises QuantiseError, OSError."""
        with safe_open(source, "pt") as file:
            names = list(file.keys())
            modules = [name.removesuffix(".weight") for name in names]
            if self.selection.quantised.isdisjoint(modules):
                shutil.copyfile(source, target)
                self.step(source.stat().st_size)
                return names, {}
            stored, errors, result = self.selection.stored, dict[str, float](), Tensors()
            tensors = ((name, file.get_tensor(name)) for name in names)
            for part, error in self._packed(tensors, stored):
                result |= part
                errors |= error
            save_file(result, target, metadata={"format": "pt"})
            shutil.copymode(source, target)  # safetensors writes files for their owner alone
        return list(result), errors

    def _packed(
        self, tensors: Iterator[tuple[str, torch.Tensor]], stored: PackedFormat
    ) -> Iterator[tuple[Tensors, dict[str, float]]]:
        def pack(item: tuple[str, torch.Tensor]) -> tuple[Tensors, dict[str, float]]:
            name, tensor = item
            module, errors = name.removesuffix(".weight"), dict[str, float]()
            if module not in self.selection.quantised:
                parts = {name: tensor}
            else:
                packed = rounding.quantise(module, tensor, stored)
                errors[module] = rounding.relative_error(module, tensor, packed, stored)
                parts = {f"{module}.{part}": value for part, value in packed.items()}
            self.step(tensor.nbytes)
            return parts, errors

        pool = ThreadPoolExecutor(self.threads)
        try:
            yield from pool.map(pack, tensors)
        finally:  # after an error or Ctrl-C: what waits is dropped
            pool.shutdown(cancel_futures=True)

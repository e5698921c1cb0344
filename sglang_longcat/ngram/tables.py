"""Storage of the n-gram tables: one rank's columns of all of them, fused, on the GPU or the host.

Host storage is not a parameter, so SGLang neither counts nor moves it, and `--load-format dummy`
leaves it zero. Every rank holds its own columns and nothing else, and ranks with the same columns
share them (`sharing.py`). So in host memory a node holds each column of a server once.
"""

from __future__ import annotations

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from longcat_kernels.row_layout import Format, row_width
from longcat_kernels.row_table import RowTable, quantise_fp8, quantise_int4, row_scales
from sglang_longcat.checkpoint.headers import CheckpointError
from sglang_longcat.ngram.host_memory import HostMemory, cores
from sglang_longcat.ngram.sharing import Sharers
from sglang_longcat.planning.placement import Where
from sglang_longcat.planning.sizing import TableDtype

logger = logging.getLogger(__name__)
_BLOCK_ROWS = 1 << 18  # 128 MiB of full-width rows: what one loading thread holds at a time


@dataclass
class QuantisationError:
    """Of fp8 or int4 rows: sum |error|, sum |value|, the largest |error| / max |value| of a row."""

    error: float = 0.0
    total: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, weight: torch.Tensor, stored: torch.Tensor) -> QuantisationError:
        wrong, largest = (stored - weight).abs(), weight.abs().amax(1)
        return cls(
            wrong.sum(dtype=torch.float64).item(),
            weight.abs().sum(dtype=torch.float64).item(),
            (wrong.amax(1) / largest.clamp_min(torch.finfo(torch.float32).tiny)).max().item(),
        )

    def add(self, other: QuantisationError) -> None:
        self.error += other.error
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    def __str__(self) -> str:
        mean = self.error / max(self.total, 1e-300)
        return f"mean relative error {mean:.2%}, largest {self.largest:.2%} of its row's maximum"


def _require_numbers(index: int, error: QuantisationError, format: Format) -> None:
    """One NaN or infinity becomes a scale: of 32 values in int4, of a whole row in fp8."""
    if not math.isfinite(error.total):
        raise CheckpointError(
            f"model.ngram_embeddings.embedders.{index}.weight holds NaN or infinite values, which "
            f"LONGCAT_NGRAM_TABLE_DTYPE={format} would spread. Download the model again."
        )


class NgramTables(nn.Module):
    """rows: number of rows of each table; columns: this rank's slice of a whole row.

    sharers: the ranks that share host storage. Only their owner writes it; the others ignore what
    `load` gets.
    """

    def __init__(
        self,
        rows: tuple[int, ...],
        columns: slice,
        *,
        dtype: torch.dtype,
        table_dtype: TableDtype,
        where: Where,
        device: torch.device,
        show_progress: bool,
        sharers: Sharers | None = None,
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.where = rows, columns, where
        self.format: Format = "plain" if table_dtype == "bf16" else table_dtype
        self.sharers = sharers if where == "host" else None
        count = columns.stop - columns.start
        shape = (sum(rows), row_width(count, self.format))
        kind = dtype if self.format == "plain" else torch.uint8
        if where == "host":
            size = shape[0] * shape[1] * kind.itemsize
            reserve = self.sharers.allocate if self.sharers else HostMemory
            self.memory = reserve(size, pin=device.type == "cuda")
            storage = self.memory.bytes.view(kind).view(shape)
        else:
            allocate = torch.empty if self.format == "plain" else torch.zeros
            storage = allocate(shape, dtype=kind, device=device)
            self.storage = nn.Parameter(storage, requires_grad=False)
        self.table = RowTable(storage, count, dtype, self.format)
        self.error = QuantisationError()
        self.loaded: set[int] = set()
        self._bar = tqdm(
            total=len(rows),
            desc="N-gram tables",
            unit="table",
            disable=not show_progress,
            delay=1,
        )

    def _apply(self, fn: object, recurse: bool = True) -> NgramTables:
        """Do nothing: `Module.to` would replace the tensor that `table` refers to."""
        return self

    @property
    def writes(self) -> bool:
        return self.sharers is None or self.sharers.owns

    def finish_load(self) -> None:
        """Collective where ranks share: no rank reads a row before its owner has written it."""
        if self.sharers is not None:
            self.sharers.wait()

    def load(self, index: int, weight: torch.Tensor) -> None:
        """weight: [rows[index], width of a whole row], as in the checkpoint. Several threads read
        blocks of it."""
        if not self.writes:
            return
        first = sum(self.rows[:index])
        own = self.table.storage.data[first : first + self.rows[index]]
        blocks = list(zip(own.split(_BLOCK_ROWS), weight.split(_BLOCK_ROWS), strict=True))
        threads = min(8, cores()) if self.where == "host" else 1
        if index in self.loaded:  # a weight update
            self.error, self.loaded = QuantisationError(), set()
        with ThreadPoolExecutor(threads) as pool:
            for error in pool.map(lambda block: self._load_block(*block), blocks):
                _require_numbers(index, error, self.format)
                self.error.add(error)
        self.loaded.add(index)
        self._bar.update()
        if len(self.loaded) == len(self.rows):
            self._bar.close()
            if self.format != "plain":
                logger.info("N-gram tables in %s: %s", self.format, self.error)

    def _load_block(self, target: torch.Tensor, source: torch.Tensor) -> QuantisationError:
        own = source[:, self.columns]
        if self.format == "plain":
            # To a GPU a column slice goes through a contiguous buffer on the host.
            target.copy_(own.contiguous() if target.is_cuda else own)
            return QuantisationError()
        fp8 = self.format == "fp8"
        stored = quantise_fp8(own, row_scales(source)) if fp8 else quantise_int4(own)
        target.copy_(stored)
        table = RowTable(stored, own.shape[1], torch.float32, self.format)
        return QuantisationError.of(own.float(), table.values(stored))

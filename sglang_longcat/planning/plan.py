"""The memory plan of one rank: weights, reserve, n-gram tables, and the KV cache beside them.

    room for tables and KV cache = free memory - reserve - weights without tables - holes
    tokens of KV cache           = (room - tables, where these are on the GPU) / bytes of a token

`estimate`, `doctor` and `benchmarks/scaling.py` call `plan_memory`. A running server
(`ngram/embedding.py`) has most of its weights allocated: it measures its free memory and starts
from `device_room`. Bytes of tensors are `sizing`'s, the size of the reserve is `reserve`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import placement, reserve, sizing
from sglang_longcat.planning.sizing import GIB, MIB

_MTP_ALGORITHMS = ("NEXTN", "EAGLE")
# Of a server's process, before SGLang asks what is free: 0.69 GiB on an H200.
CUDA_CONTEXT = round(0.7 * GIB)
# What 4-bit weights took on an H200 beyond their tensors: 20.03 GiB for 19.40, and 78.53 for 77.90
# with the tables; 19.69 with PyTorch's expandable segments, which only the recipe for 24 GB sets.
# Most of it seems to be memory that PyTorch holds between tensors and cannot give back. Other
# formats took less than 5 % more than their tensors, which is what plans are unsure of.
_HOLES_INT4 = round(0.65 * GIB)


@dataclass(frozen=True)
class MachineMemory:
    """Bytes at the moment of planning. Of several GPUs: those of the one with the least free."""

    gpu_total: float  # what --mem-fraction-static is a fraction of
    gpu_free: float
    host: int = 0  # only MemoryFlags.tables="auto" asks for it
    shown: float | None = None  # by the driver, in all; None: gpu_total

    @property
    def driver_total(self) -> float:
        """What the plugin and SGLang size reserve, prefills and graphs by."""
        return self.gpu_total if self.shown is None else self.shown

    @classmethod
    def of_gpu(cls, free_gib: float, shown_gib: float | None = None) -> MachineMemory:
        """Of an idle GPU by what SGLang finds free there (`roofline.Gpu.memory`), of which it takes
        its fraction."""
        shown = None if shown_gib is None else shown_gib * GIB
        return cls(gpu_total=free_gib * GIB, gpu_free=free_gib * GIB, shown=shown)

    @classmethod
    def by_driver(cls, total: float, free: float, host: int) -> MachineMemory:
        """Of a GPU by what the driver shows before a server has its CUDA context there."""
        free = max(0, free - CUDA_CONTEXT)
        return cls(gpu_total=total - CUDA_CONTEXT, gpu_free=free, host=host, shown=total)


@dataclass(frozen=True)
class MemoryFlags:
    """The server's settings that decide how its memory is used."""

    tp: int = 1
    attention_dp: int = 1  # replicas of attention among the tp ranks
    mem_fraction: float | None = None  # --mem-fraction-static; None: all but reserve_mb
    reserve_mb: float | None = None  # None: what the plugin keeps with SGLang's default flags
    tables: str = "auto"  # LONGCAT_NGRAM_TABLES
    table_dtype: sizing.TableDtype = "bf16"
    kv_dtype: sizing.KvDtype = "bf16"
    draft: bool = False  # speculative decoding with the MTP layer
    tokens_wanted: int = 0  # `auto` keeps the tables on the GPU if the KV cache then has so many


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank."""

    weights: sizing.Parts
    draft: int  # the MTP layer and its FP8 head, where the server drafts
    room: placement.Room
    tables: placement.Where
    why: str  # the reason for that place

    @property
    def gpu_tables(self) -> int:
        return self.room.tables if self.tables == "device" else 0

    @property
    def gpu_weights(self) -> int:
        return self.weights.without_tables + self.draft + self.gpu_tables

    @property
    def host_tables(self) -> int:
        """Of all ranks of the machine together."""
        return self.room.tables_on_node if self.tables == "host" else 0

    @property
    def kv_tokens(self) -> int:
        """Of one replica; negative: the weights do not fit."""
        return self.room.kv_tokens(self.tables)


def mtp_drafts(algorithm: str | None) -> bool:
    """Whether the MTP layer drafts with this --speculative-algorithm, None if there is none."""
    return (algorithm or "").upper() in _MTP_ALGORITHMS


def plan_memory(config: LongcatConfig, memory: MachineMemory, flags: MemoryFlags) -> MemoryPlan:
    """Raises placement.PlacementError where `auto` finds no room for the tables."""
    weights = sizing.parts(
        config, ranks=flags.tp, attention_dp=flags.attention_dp, table_dtype=flags.table_dtype
    )
    draft = draft_bytes(config, tp=flags.tp, attention_dp=flags.attention_dp) if flags.draft else 0
    room = placement.Room(
        tables=weights.tables,
        tables_on_node=weights.tables * (flags.tp // flags.attention_dp),  # replicas share theirs
        device=device_room(memory, flags, weights=weights.without_tables + draft + _holes(config)),
        host=memory.host,
        kv_bytes_per_token=sizing.kv_bytes_per_token(config, flags.kv_dtype, draft=flags.draft),
        tokens_wanted=flags.tokens_wanted,
    )
    tables, why = placement.choose(flags.tables, room)
    return MemoryPlan(weights=weights, draft=draft, room=room, tables=tables, why=why)


def _holes(config: LongcatConfig) -> int:
    return _HOLES_INT4 if config.quant is not None and config.quant.packed is not None else 0


def draft_bytes(config: LongcatConfig, *, tp: int, attention_dp: int = 1) -> int:
    """`sizing.draft_bytes` as LONGCAT_DRAFT_EMBEDDING and LONGCAT_DRAFT_HEAD decide it. `auto`
    counts the FP8 copy on every GPU, although only Hopper has it."""
    return sizing.draft_bytes(
        config,
        ranks=tp,
        attention_dp=attention_dp,
        own_embedding=env.draft_embedding() == "mtp",
        fp8_head=env.draft_head() != "bf16",
    )


def device_room(memory: MachineMemory, flags: MemoryFlags, *, weights: int) -> int:
    """Bytes for tables and KV cache. weights: what is still to be allocated, without the tables."""
    return math.floor(memory.gpu_free - _reserve_bytes(memory, flags) - weights)


def _reserve_bytes(memory: MachineMemory, flags: MemoryFlags) -> float:
    """Bytes that stay outside of weights and KV cache."""
    return memory.gpu_total * (1 - _fraction(memory, flags))


def _fraction(memory: MachineMemory, flags: MemoryFlags) -> float:
    """--mem-fraction-static. The plugin's leaves the reserve of what the driver shows
    (`host/memory_share.py`), and SGLang takes it of what it finds free."""
    if flags.mem_fraction is not None:
        return flags.mem_fraction
    total_mb, reserve_mb = memory.driver_total / MIB, flags.reserve_mb
    if not total_mb:
        return 0.0
    if reserve_mb is None:
        reserve_mb = reserve.default_runtime_reserve_mb(
            total_mb, flags.tp, attention_dp=flags.attention_dp, draft=flags.draft
        )
    return 1 - reserve_mb / total_mb

"""The memory plan of one rank: weights, reserve, n-gram tables, and the KV cache beside them.

    room for tables and KV cache = free memory - reserve - weights without tables
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


@dataclass(frozen=True)
class MachineMemory:
    """Bytes at the moment of planning. Of several GPUs: those of the one with the least free."""

    gpu_total: float  # what --mem-fraction-static is a fraction of
    gpu_free: float
    host: int = 0  # only MemoryFlags.tables="auto" asks for it

    @classmethod
    def of_gpu(cls, free_gib: float) -> MachineMemory:
        """Of an idle GPU whose free memory alone is known (`roofline.Gpu.memory`). SGLang takes
        its fraction of that memory."""
        return cls(gpu_total=free_gib * GIB, gpu_free=free_gib * GIB)


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
        device=device_room(memory, flags, weights=weights.without_tables + draft),
        host=memory.host,
        kv_bytes_per_token=sizing.kv_bytes_per_token(config, flags.kv_dtype, draft=flags.draft),
        tokens_wanted=flags.tokens_wanted,
    )
    tables, why = placement.choose(flags.tables, room)
    return MemoryPlan(weights=weights, draft=draft, room=room, tables=tables, why=why)


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
    if flags.mem_fraction is not None:
        return memory.gpu_total * (1 - flags.mem_fraction)
    reserve_mb = flags.reserve_mb
    if reserve_mb is None:
        reserve_mb = reserve.default_runtime_reserve_mb(
            memory.gpu_total / MIB, flags.tp, attention_dp=flags.attention_dp, draft=flags.draft
        )
    return reserve_mb * MIB

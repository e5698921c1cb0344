"""Where the n-gram tables are stored: GPU memory, or pinned host memory that the gather reads.

Owns: the choice of LONGCAT_NGRAM_TABLES=auto, the tokens of KV cache that each choice leaves, and
the log line that explains the choice. `plan` fills a `Room` from sizes, a running server
(`ngram/embedding.py`) from its measured free memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from sglang_longcat.planning.sizing import GIB

Where = Literal["device", "host"]
HOST_MARGIN = 1.05  # the host must have this many times the tables


class PlacementError(ValueError):
    """Neither the GPU nor the host has room for the tables."""


@dataclass(frozen=True)
class Room:
    """What the choice depends on. Bytes of one rank, except `host` and `tables_on_node`. `device`
    and `host` are the least of all ranks, so that all ranks choose alike."""

    tables: int
    tables_on_node: int  # of all ranks of a machine; ranks that share columns count once
    device: int  # for tables and KV cache: without all other weights and the reserve
    host: int
    kv_bytes_per_token: int
    tokens_wanted: int  # that the KV cache should hold

    def kv_tokens(self, where: Where) -> int:
        """Of KV cache, with the tables in that place; negative: the weights do not fit."""
        return self.kv_tokens_beside(self.tables if where == "device" else 0)

    def kv_tokens_beside(self, tables: int) -> int:
        """The same with this many bytes of tables on the GPU."""
        return (self.device - tables) // self.kv_bytes_per_token


def choose(wish: str, room: Room) -> tuple[Where, str]:
    """(placement, why). Raises PlacementError where `auto` finds no room for the tables.

    auto: device if the KV cache then still holds `room.tokens_wanted` (one request of the server's
    context length, or --max-total-tokens), else host. A host without enough memory leaves device.
    """
    if wish != "auto":
        return cast(Where, wish), f"LONGCAT_NGRAM_TABLES={wish}"
    tokens = max(0, room.kv_tokens("device"))
    why = f"auto: {tokens:,} tokens of KV cache beside them in HBM, {room.tokens_wanted:,} wanted"
    if tokens >= room.tokens_wanted:
        return "device", why
    if room.host > room.tables_on_node * HOST_MARGIN:
        return "host", why
    if tokens:
        return "device", f"{why}, but {room.host / GIB:.1f} GiB of host memory free"
    raise PlacementError(
        f"the N-gram tables need {room.tables / GIB:.1f} GiB of GPU memory on each rank, where "
        f"{room.device / GIB:.1f} GiB are left, or {room.tables_on_node / GIB:.1f} GiB of host "
        f"memory, where {room.host / GIB:.1f} GiB are. Use more GPUs (--tp-size), give the "
        "machine or container more memory, or store fewer bytes with LONGCAT_NGRAM_TABLE_DTYPE=fp8 "
        "or int4."
    )


def describe(where: Where, why: str, room: Room) -> str:
    """The log line: bytes in HBM, bytes pinned on the host, KV tokens gained by that."""
    in_hbm, pinned = (room.tables, 0) if where == "device" else (0, room.tables)
    shared = room.tables_on_node if pinned else 0
    gained = pinned // room.kv_bytes_per_token
    return (
        f"N-gram tables: {where} ({why}): {in_hbm / GIB:.2f} GiB in HBM, {pinned / GIB:.2f} GiB "
        f"pinned on the host per rank ({shared / GIB:.2f} on this node), room for {gained:,} more "
        "tokens of KV cache"
    )

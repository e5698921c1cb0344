"""Where the n-gram tables live: GPU memory, or pinned host memory that the gather reads in place.

Owns the choice of LONGCAT_NGRAM_TABLES=auto and the line that explains it. Sizes are per rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

Where = Literal["device", "host"]
HOST_MARGIN = 1.05  # the host must have this many times the tables
_GIB = 1 << 30


class PlacementError(ValueError):
    """The tables fit nowhere, or the wish cannot be met."""


@dataclass(frozen=True)
class Room:
    """What the choice depends on. Bytes of one rank, but `host` and `tables_on_node`; of all ranks
    the least room, so that they choose alike."""

    tables: int
    tables_on_node: int  # of all ranks of a machine; ranks that share columns count once
    device: int  # for tables and KV cache, all other weights allowed for
    host: int
    kv_token: int  # of a token's KV cache
    tokens: int  # that the KV cache should hold

    @property
    def tokens_beside(self) -> int:
        """KV cache that is left with the tables on the GPU."""
        return max(0, self.device - self.tables) // self.kv_token


def choose(wish: str, room: Room) -> tuple[Where, str]:
    """(placement, why). Raises PlacementError where `auto` finds room for the tables nowhere.

    auto: device if the KV cache then still holds `room.tokens` (one request of the server's context
    length, or --max-total-tokens), else host; a host without room leaves device.
    """
    beside = f"{room.tokens_beside:,} tokens of KV cache beside them in HBM, {room.tokens:,} wanted"
    if wish != "auto":
        return cast(Where, wish), f"LONGCAT_NGRAM_TABLES={wish}"
    if room.tokens_beside >= room.tokens:
        return "device", f"auto: {beside}"
    if room.host > room.tables_on_node * HOST_MARGIN:
        return "host", f"auto: {beside}"
    if room.tokens_beside:
        return "device", f"auto: {beside}, but {room.host / _GIB:.1f} GiB of host memory free"
    raise PlacementError(
        f"the N-gram tables need {room.tables / _GIB:.1f} GiB of GPU memory on each rank, where "
        f"{room.device / _GIB:.1f} GiB are left, or {room.tables_on_node / _GIB:.1f} GiB of host "
        f"memory, where {room.host / _GIB:.1f} GiB are. Use more GPUs (--tp-size), give the "
        "machine or container more memory, or halve the tables with LONGCAT_NGRAM_TABLE_DTYPE=fp8."
    )


def describe(where: Where, why: str, room: Room) -> str:
    """The log line: bytes in HBM, bytes pinned, KV tokens gained."""
    in_hbm, pinned = (room.tables, 0) if where == "device" else (0, room.tables)
    shared = room.tables_on_node if pinned else 0
    gained = pinned // room.kv_token
    return (
        f"N-gram tables: {where} ({why}): {in_hbm / _GIB:.2f} GiB in HBM, {pinned / _GIB:.2f} GiB "
        f"pinned on the host per rank ({shared / _GIB:.2f} on this node), room for {gained:,} more "
        "tokens of KV cache"
    )

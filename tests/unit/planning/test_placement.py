"""Where the tables are stored, by the room on GPU and host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sglang_longcat.planning.placement import PlacementError, Room, choose, describe

GIB = 1 << 30
# One H200: 58.5 GiB of tables; 62.6 GiB left for them and the KV cache, 31.5 KiB a token.
H200 = Room(
    tables=int(58.5 * GIB),
    tables_on_node=int(58.5 * GIB),
    device=int(62.6 * GIB),
    host=120 * GIB,
    kv_bytes_per_token=32_256,
    tokens_wanted=327_680,
)


def test_auto_keeps_the_tables_on_the_gpu_where_a_full_context_fits_beside_them() -> None:
    assert choose("auto", replace(H200, tokens_wanted=100_000))[0] == "device"


def test_auto_moves_them_where_it_does_not() -> None:
    where, why = choose("auto", H200)
    assert where == "host"
    assert "136,481 tokens of KV cache beside them in HBM, 327,680 wanted" in why


def test_auto_stays_where_the_host_lacks_memory() -> None:
    where, why = choose("auto", replace(H200, host=60 * GIB))
    assert where == "device"
    assert "60.0 GiB of host memory" in why


def test_auto_counts_every_rank_of_the_node() -> None:
    half = replace(H200, tables=H200.tables // 2, device=20 * GIB, host=60 * GIB)
    assert choose("auto", replace(half, tables_on_node=half.tables))[0] == "host"
    with pytest.raises(PlacementError, match=r"29\.2 GiB of GPU memory .* 58\.5 GiB of host"):
        choose("auto", half)


def test_a_wish_is_followed() -> None:
    """Also if it does not fit: the allocation then fails, with a message about its own limit."""
    for wish in ("host", "device"):
        assert choose(wish, replace(H200, host=0, device=0)) == (
            wish,
            f"LONGCAT_NGRAM_TABLES={wish}",
        )


def test_the_log_line_names_bytes_and_tokens() -> None:
    assert "0.00 GiB in HBM, 58.50 GiB pinned" in describe("host", "", H200)
    assert "room for 1,947,355 more tokens" in describe("host", "", H200)
    assert "58.50 GiB in HBM, 0.00 GiB pinned on the host per rank (0.00" in describe(
        "device", "", H200
    )
    two_ranks = replace(H200, tables=H200.tables // 2)
    assert "29.25 GiB pinned on the host per rank (58.50 on this node)" in describe(
        "host", "", two_ranks
    )
    assert "room for 0 more tokens" in describe("device", "", H200)

"""Gathered rows against plain indexing with the ids, which test_ngram_ids checks. All exact."""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct

import pytest
import torch

from longcat_kernels import lite, ngram
from longcat_kernels.ngram import HashParams, Window, workloads
from longcat_kernels.ngram.workloads import make_rows
from longcat_kernels.row_table import RowTable, quantise_fp8, quantise_int4, row_scales

SMALL_ROWS = tuple(50 + 2 * i for i in range(lite.NGRAM_TABLES))
COLUMNS = [256, 128, 32, 48]  # TP1, TP2, TP8, and no power of two
KINDS = ["bf16", "fp32", "fp8", "int4"]


def small_params(device: str) -> HashParams:
    return workloads.lite_params(device, rows=SMALL_ROWS)


def random_rows(kind: str, columns: int, device: str) -> RowTable:
    rows = make_rows(sum(SMALL_ROWS), columns, kind, seed=2, device=device)
    if rows.format != "plain" and os.environ.get("TRITON_INTERPRET") == "1":
        # Triton's interpreter cuts fp32 to bf16 where the compiler rounds.
        return dataclasses.replace(rows, dtype=torch.float32)
    return rows


def plain(ids: torch.Tensor, rows: RowTable) -> torch.Tensor:
    """Row by row in Python; fp8 and int4 as value * scale in fp32."""
    out = []
    for id in ids.flatten().tolist():
        row = rows.storage[id].cpu()
        if rows.format == "fp8":
            scale = row[rows.columns : rows.columns + 4].view(torch.float32)
            row = (row[: rows.columns].view(torch.float8_e4m3fn).float() * scale).to(rows.dtype)
        if rows.format == "int4":
            row = plain_int4(row, rows.columns).to(rows.dtype)
        out.append(row)
    return torch.stack(out).view(ids.shape[0], -1)


def plain_int4(row: torch.Tensor, columns: int) -> torch.Tensor:
    """Value by value, from the bytes that the layout names."""
    data, half = bytes(row.tolist()), columns // 2
    codes = [data[c % half] >> 4 * (c // half) & 15 for c in range(columns)]
    scales = [half + 2 * (c // 32) for c in range(columns)]
    # A bf16 number is the upper half of the fp32 number with the same value.
    spread = [struct.unpack("<f", bytes(2) + data[at : at + 2])[0] for at in scales]
    signed = [code - 16 if code > 7 else code for code in codes]
    return torch.tensor(signed).float() * torch.tensor(spread)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_window_gathers_what_its_ids_name(device: str, kind: str, columns: int) -> None:
    params, inputs = small_params(device), workloads.make_inputs([4] * 3, seed=1, device=device)
    rows = random_rows(kind, columns, device)
    ring, other_ring = inputs.ring.clone(), inputs.ring.clone()
    ids = ngram.window_ids(inputs.window, ring, params)
    got = ngram.window_rows(inputs.window, other_ring, params, rows)
    assert got.dtype == rows.dtype
    assert torch.equal(got.cpu(), plain(ids, rows))
    assert torch.equal(ring[1:], other_ring[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_ragged_prefill_gathers_what_its_ids_name(device: str, kind: str) -> None:
    lengths = [1, 2, 3, 4, 5, 0, 40, 17]
    params, inputs = small_params(device), workloads.make_inputs(lengths, seed=3, device=device)
    rows = random_rows(kind, 32, device)
    ring, other_ring = inputs.ring.clone(), inputs.ring.clone()
    ids = ngram.extend_ids(inputs.prefill, ring, params)
    got = ngram.extend_rows(inputs.prefill, other_ring, params, rows)
    assert torch.equal(got.cpu(), plain(ids, rows))
    assert torch.equal(ring[1:], other_ring[1:])


def test_the_first_and_last_row_of_each_table_at_full_size(device: str) -> None:
    """58.5 GiB of address space (memory that nobody touches): red if an offset is 32-bit."""
    if device == "cuda":
        pytest.skip("needs registered host memory: tests/model/test_placement_gpu.py")
    columns = 256
    space = mmap.mmap(-1, lite.NGRAM_TOTAL_ROWS * columns * 2, flags=mmap.MAP_PRIVATE | 0x4000)
    storage = torch.frombuffer(space, dtype=torch.bfloat16).view(lite.NGRAM_TOTAL_ROWS, columns)
    rows, params = RowTable(storage, columns, torch.bfloat16), workloads.lite_params(device)
    firsts = torch.tensor([sum(lite.NGRAM_ROWS[:i]) for i in range(lite.NGRAM_TABLES)])
    lasts = firsts + torch.tensor(lite.NGRAM_ROWS) - 1
    storage[firsts] = torch.arange(1, 13, dtype=torch.bfloat16)[:, None].expand(-1, columns)
    storage[lasts] = -torch.arange(1, 13, dtype=torch.bfloat16)[:, None].expand(-1, columns)
    # Token 0 at the start of a text hashes to row 0 of each table.
    ring = torch.zeros((2, lite.RING), dtype=torch.int32, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    window = Window(zero, positions=zero, slots=zero + 1)
    got = ngram.window_rows(window, ring, params, rows)
    assert torch.equal(got.view(lite.NGRAM_TABLES, columns)[:, 0].float(), torch.arange(1, 13.0))
    # With the last rows as offsets it hashes to those.
    ends = dataclasses.replace(params, offsets=lasts.to(device))
    got = ngram.window_rows(window, ring, ends, rows)
    assert torch.equal(got.view(lite.NGRAM_TABLES, columns)[:, -1].float(), -torch.arange(1, 13.0))


def test_fp8_rows_stay_within_their_rounding() -> None:
    """e4m3 keeps 3 bits after the point: half a step is 1/16 of a normal value, and 2^-10 of the
    scale below those. Red if a scale is misplaced or taken over other values than its row's."""
    weight = torch.randn(100, 64) * torch.logspace(-6, 6, 100)[:, None]
    weight[7] = 0
    scale = row_scales(weight)
    rows = RowTable(quantise_fp8(weight, scale), 64, torch.float32, "fp8")
    got = ngram.reference.gather(torch.arange(100)[:, None], rows)
    bound = (weight.abs() / 16).clamp_min((scale * 2**-10)[:, None])
    assert bool(((got - weight).abs() <= bound * 1.001).all())
    assert not got[7].any()


def test_int4_rows_stay_within_their_rounding() -> None:
    """A step is 1/8 of the group's largest magnitude: half of it for every value, but a whole one
    for values near the largest with the other sign, which have code 7 at most. bf16 rounds the
    scale by up to 2^-8, and 7 codes with it. Red if a scale is another group's, or a code another
    column's."""
    random = torch.Generator().manual_seed(4)
    weight = torch.randn(100, 128, generator=random) * torch.logspace(-6, 6, 100)[:, None]
    weight[:, 32:64] *= 100
    weight[7] = 0
    rows = RowTable(quantise_int4(weight), 128, torch.float32, "int4")
    got = ngram.reference.gather(torch.arange(100)[:, None], rows)
    largest = weight.view(100, 4, 32).abs().amax(2).repeat_interleave(32, 1)
    wrong = (got - weight).abs()
    assert bool((wrong <= largest / 8 * (1 + 7 / 256)).all())
    within = weight.abs() < largest * 7 / 8
    assert bool((wrong <= largest / 16 * (1 + 1 / 256))[within].all())
    assert not got[7].any()


def test_widths_that_int4_cannot_hold_are_refused() -> None:
    with pytest.raises(ValueError, match="int4 rows of 33 columns: expected an even number"):
        quantise_int4(torch.ones(2, 33))


def test_storage_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected torch.bfloat16 \[rows, 32\]"):
        RowTable(torch.zeros(4, 31, dtype=torch.bfloat16), 32, torch.bfloat16)
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[rows, 48\] for fp8 rows"):
        RowTable(torch.zeros(4, 32, dtype=torch.uint8), 32, torch.bfloat16, "fp8")
    with pytest.raises(ValueError, match=r"expected torch.uint8 \[rows, 144\] for int4 rows"):
        RowTable(torch.zeros(4, 128, dtype=torch.uint8), 256, torch.bfloat16, "int4")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_captured_step_follows_its_inputs(kind: str) -> None:
    device = "cuda"
    params, rows = small_params(device), random_rows(kind, 256, device)
    static = workloads.make_inputs([2] * 64, seed=0, device=device)
    args = static.window, static.ring, params, rows
    ngram.window_rows(*args)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ngram.window_rows(*args)
    for step in range(1, 5):
        fresh = workloads.make_inputs([2] * 64, seed=step, device=device)
        for name in ("tokens", "positions", "slots", "ring"):
            getattr(static, name).copy_(getattr(fresh, name))
        want = ngram.reference.window_rows(fresh.window, fresh.ring, params, rows)
        graph.replay()
        assert torch.equal(out, want)
        assert torch.equal(static.ring[1:], fresh.ring[1:])

"""Storage and loading of one rank's columns of the n-gram tables."""

from __future__ import annotations

import pytest
import torch

from longcat_kernels.ngram import reference
from sglang_longcat.checkpoint.headers import CheckpointError
from sglang_longcat.ngram import tables as module
from sglang_longcat.ngram.sharing import Sharers
from sglang_longcat.ngram.tables import NgramTables, QuantisationError
from sglang_longcat.planning.placement import Where
from sglang_longcat.planning.sizing import TableDtype, row_bytes

ROWS, WIDTH = (5, 7, 9), 64
QUANTISED: tuple[TableDtype, ...] = ("fp8", "int4")


def make(
    where: Where,
    columns: slice = slice(0, WIDTH),
    *,
    table_dtype: TableDtype = "bf16",
    sharers: Sharers | None = None,
) -> NgramTables:
    return NgramTables(
        ROWS,
        columns,
        dtype=torch.bfloat16,
        table_dtype=table_dtype,
        where=where,
        device=torch.device("cpu"),
        show_progress=False,
        sharers=sharers,
    )


@pytest.fixture(params=[2, 1 << 18], ids=["blocks", "one block"])
def weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """One tensor a table, as in the checkpoint; rows of very different sizes."""
    monkeypatch.setattr(module, "_BLOCK_ROWS", request.param)
    random = torch.Generator().manual_seed(1)
    gains = torch.logspace(-3, 3, max(ROWS))[:, None]
    return [(torch.randn(n, WIDTH, generator=random) * gains[:n]).bfloat16() for n in ROWS]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("table_dtype", QUANTISED)
def test_a_value_that_is_no_number(table_dtype: TableDtype, number: float) -> None:
    """Red if it is loaded, and takes its neighbours with it. Zeros and the largest numbers are."""
    tables = make("device", table_dtype=table_dtype)
    weight = torch.zeros(ROWS[1], WIDTH, dtype=torch.bfloat16)
    weight[2, 5] = torch.finfo(torch.bfloat16).max
    tables.load(1, weight)
    assert every_row(tables).isfinite().all()
    weight[3, 7] = number
    with pytest.raises(CheckpointError, match=r"embedders\.1\.weight holds NaN or infinite"):
        tables.load(1, weight)


def every_row(tables: NgramTables) -> torch.Tensor:
    return reference.gather(torch.arange(sum(ROWS))[:, None], tables.table)


@pytest.mark.parametrize("where", ["host", "device"])
def test_ranks_hold_their_columns_and_nothing_else(
    weights: list[torch.Tensor], where: Where
) -> None:
    ranks = [make(where, slice(0, 32)), make(where, slice(32, 64))]
    for rank in ranks:
        for index in (2, 0, 1):  # in whatever order the shards bring them
            rank.load(index, weights[index])
    assert torch.equal(torch.cat([every_row(rank) for rank in ranks], dim=1), torch.cat(weights))
    held = sum(rank.table.storage.nbytes for rank in ranks)
    assert held == sum(ROWS) * row_bytes(WIDTH, torch.bfloat16.itemsize, "bf16")


def test_a_rank_that_does_not_own_its_memory_leaves_it_alone(weights: list[torch.Tensor]) -> None:
    """Red if a replica writes the rows that another one has written, or is writing."""
    sharers = Sharers(
        exchange=lambda value: [value] * 2, rank=1, owner=0, count=2, copies=1, any_shared=False
    )
    reader = make("host", sharers=sharers)
    for index, weight in enumerate(weights):
        reader.load(index, weight)
    assert not every_row(reader).any()
    assert make("device", sharers=sharers).writes


def test_only_device_storage_is_a_parameter_of_the_model() -> None:
    """SGLang counts, moves and fills parameters; host tables stay where they are."""
    assert not list(make("host").parameters())
    assert [parameter.shape for parameter in make("device").parameters()] == [(sum(ROWS), WIDTH)]


@pytest.mark.parametrize("kind", QUANTISED)
def test_quantised_ranks_share_a_scale(kind: TableDtype, weights: list[torch.Tensor]) -> None:
    """Red if a rank scales by its own columns: TP2 would then be another model than TP1."""
    whole = make("host", table_dtype=kind)
    slices = slice(0, 32), slice(32, 64)
    halves = [make("host", columns, table_dtype=kind) for columns in slices]
    for tables in (whole, *halves):
        for index, weight in enumerate(weights):
            tables.load(index, weight)
    assert torch.equal(torch.cat([every_row(half) for half in halves], dim=1), every_row(whole))


@pytest.mark.parametrize(
    ("kind", "least", "most", "largest"),
    [("fp8", 0.01, 0.04, (0.02, 1 / 16)), ("int4", 0.04, 0.12, (0.05, 1 / 8))],
)
def test_the_error_is_reported(
    weights: list[torch.Tensor],
    caplog: pytest.LogCaptureFixture,
    kind: TableDtype,
    least: float,
    most: float,
    largest: tuple[float, float],
) -> None:
    """Random normal values: half a step is 1/16 of a value in fp8, and 1/16 of the largest of its
    group in int4, twice that where it has the other sign."""
    tables = make("device", table_dtype=kind)
    with caplog.at_level("INFO"):
        for index, weight in enumerate(weights):
            tables.load(index, weight)
    every = torch.cat(weights).float()
    wrong = (every_row(tables).float() - every).abs()
    assert f"N-gram tables in {kind}: mean relative error" in caplog.text
    mean = tables.error.error / tables.error.total
    assert mean == pytest.approx((wrong.sum() / every.abs().sum()).item(), rel=0.1)
    assert least < mean < most
    assert largest[0] < tables.error.largest <= largest[1]


def test_a_second_load_replaces_the_first(weights: list[torch.Tensor]) -> None:
    tables = make("host", table_dtype="fp8")
    for factor in (1, 3):
        for index, weight in enumerate(weights):
            tables.load(index, weight * factor)
    whole = sum(weight.float().abs().sum().item() for weight in weights)
    assert tables.error.total == pytest.approx(3 * whole, rel=0.01)


def test_errors_add_up() -> None:
    total = QuantisationError()
    total.add(QuantisationError(1.0, 10.0, 0.5))
    total.add(QuantisationError(2.0, 20.0, 0.25))
    assert str(total) == "mean relative error 10.00%, largest 50.00% of its row's maximum"

"""The curves of docs/throughput.svg, from files made here. CI has no matplotlib."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import plots
from benchmarks.serving import curves
from benchmarks.serving.arms import ARMS


def write(folder: Path, name: str, results: dict[str, dict[int, float]]) -> None:
    """users -> tok/s while decoding of each arm, as benchmarks/serving writes them."""
    arms = {
        arm: {"runs": [{"users": users, "steady_tok_s": rate} for users, rate in rates.items()]}
        for arm, rates in results.items()
    }
    (folder / name).write_text(json.dumps({"results": arms}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    few = {"ours": {8: 3000.0, 1: 700.0, 64: 12000.0}, "in-tree": {1: 230.0, 8: 1200.0}}
    many = {
        "ours": {64: 11000.0, 200: 20000.0},
        "no-drafts": {200: 9900.0},
        "in-tree": {200: 8000.0},
    }
    write(tmp_path, curves.FILES[0], few)
    write(tmp_path, curves.FILES[1], many)
    return tmp_path


def test_recipes_are_joined_by_the_faster(folder: Path) -> None:
    """Red if a curve goes back at the seam of the recipes, or an arm has no curve."""
    assert set(curves.LABELS) == set(ARMS)
    lines = curves.read(folder)
    assert list(lines) == list(curves.LABELS.values())
    assert lines[curves.LABELS["ours"]] == [(1, 700), (8, 3000), (64, 12000), (200, 20000)]
    assert lines[curves.LABELS["in-tree"]] == [(1, 230), (8, 1200), (200, 8000)]


def test_an_arm_that_is_missing_is_an_error(folder: Path) -> None:
    """Red if the figure would show ours alone."""
    write(folder, curves.FILES[1], {"ours": {200: 20000.0}, "no-drafts": {200: 9900.0}})
    write(folder, curves.FILES[0], {"ours": {1: 700.0}})
    with pytest.raises(ValueError, match="no run of in-tree"):
        curves.read(folder)


class Axes:
    """Keeps what is drawn on it."""

    def __init__(self) -> None:
        self.lines: dict[str, tuple[Any, ...]] = {}
        self.ticks: list[str] = []
        self.yaxis = SimpleNamespace(set_major_formatter=self._format)

    def plot(self, users: tuple[int, ...], rates: tuple[float, ...], _: str, *, label: str) -> None:
        self.lines[label] = (users, rates)

    def set_xticks(self, users: list[int], *, labels: list[str]) -> None:
        assert len(users) == len(labels)
        self.ticks = labels

    def _format(self, form: str) -> None:
        self.thousand = form.format(x=10000)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_the_axes_have_plain_numbers(folder: Path) -> None:
    """Red if a tick is a power of ten, or tokens are drawn over the wrong axis."""
    axes = Axes()
    plots.draw_serving(axes, curves.read(folder))
    assert axes.ticks == ["1", "8", "64", "200"]
    assert axes.thousand == "10,000"
    assert axes.lines[curves.LABELS["no-drafts"]] == ((200,), (9900.0,))

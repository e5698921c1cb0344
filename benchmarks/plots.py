"""Draws the two figures of docs/ from the files in benchmarks/results.

    python -m benchmarks.plots        # needs matplotlib

docs/throughput.svg shows tok/s while decoding by users, docs/speculation.svg the speed-up by
speculation. Owns: the drawing, and which rows of benchmarks/engine.py are shown. Those of
benchmarks/serving are chosen by its `curves`.
"""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT
from benchmarks.serving import curves

INPUT = 4096
APART = 1.4  # factor between two numbers of users that both have room for a label
SPECULATION = "h200/batches.json"  # ours with and without speculation, in one run


def main() -> None:
    serving(RESULTS / "h200", ROOT / "docs" / "throughput.svg")
    speculation()


def new_figure(width: float, height: float, *, rows: int = 1) -> tuple[Any, Any]:
    """A figure and its axes, a list of them if there are several rows."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "longcat"  # the same file for the same numbers
    return pyplot.subplots(rows, figsize=(width, height))


def serving(folder: Path, target: Path) -> None:
    """Draw `target` from the two files of `curves` in `folder`."""
    figure, axes = new_figure(7, 4)
    draw_serving(axes, curves.read(folder))
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def draw_serving(axes: Any, lines: dict[str, curves.Points]) -> None:
    """Plain numbers on both axes; users in equal steps for equal factors."""
    for (label, points), style in zip(lines.items(), ("d-", "o-", "o--"), strict=True):
        axes.plot(*zip(*points, strict=True), style, label=label)
    users = sorted({users for points in lines.values() for users, _ in points})
    axes.set(xscale="log", xlabel="concurrent requests (4,096 tokens in, 1,024 out)")
    axes.minorticks_off()
    ticks = [user for user, after in zip(users, [*users[1:], inf]) if after > APART * user]
    axes.set_xticks(ticks, labels=[f"{count:,}" for count in ticks])
    axes.set(ylabel="tok/s while decoding, one H200, block FP8")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def speculation() -> None:
    """The speed-up by batch; below the line at 1, speculation is slower."""
    results = json.loads((RESULTS / SPECULATION).read_text())["results"]
    without = {row["batch"]: row for row in results["host"]}
    batches = [row["batch"] for row in results["spec"]]
    # The fastest of three repeats, because other programs ran on the machine. They slow down a
    # batch of one request most.
    gains = [
        min(without[row["batch"]]["tpot_all_ms"]) / min(row["tpot_all_ms"])
        for row in results["spec"]
    ]
    figure, axes = new_figure(7, 3)
    axes.plot(batches, gains, "d-", label="3 drafts a step, 3.15 tokens accepted (simulated)")
    for batch, gain in zip(batches, gains, strict=True):
        axes.annotate(f"{gain:.2f}", (batch, gain), (0, 6), textcoords="offset points", ha="center")
    axes.axhline(1, color="grey", linestyle="--", label="where it stops paying")
    axes.set(ylim=(0, 3), ylabel="times faster than without")
    axes.legend(fontsize=8, loc="lower right")
    save(figure, axes, "speculation.svg")


def save(figure: Any, axes: Any, name: str) -> None:
    axes.set(xscale="log", xlabel=f"concurrent requests ({INPUT:,} input tokens each)")
    axes.grid(visible=True, which="both", alpha=0.3)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / name, metadata={"Date": None})


if __name__ == "__main__":
    main()

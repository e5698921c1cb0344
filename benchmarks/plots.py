"""Draws the two figures of docs/ from the files in benchmarks/results.

    python -m benchmarks.plots        # needs matplotlib

docs/throughput.svg shows output tok/s by users, docs/speculation.svg the speed-up by speculation.
Owns: the drawing, and which rows of benchmarks/engine.py are shown. Those of benchmarks/serving are
chosen by its `curves`; until they are measured, the first figure shows rows of the engine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import RESULTS, ROOT
from benchmarks.serving import curves

INPUT = 4096
# files, arm, label, style
LINES = (
    (["h200/tp1.json"], "in-tree", "in-tree, one H200 (30 requests fill it)", "o--"),
    (
        ["h200/tables.json"],
        "device",
        "ours, tables in HBM, before the fused kernels",
        "s-",
    ),
    (
        ["h200/tp1.json", "h200/host-400.json"],
        "host",
        "ours, tables in host memory",
        "o-",
    ),
    (["h200/speculation.json"], "spec", "the same, 3 drafts a step, 3.15 tokens accepted", "d-"),
    (["h100/host.json"], "host", "ours, one H100-80GB", "^-"),
)


SPECULATION = "h200/batches.json"  # ours with and without speculation, in one run


def main() -> None:
    if curves.are_measured(RESULTS / "h200"):
        serving(RESULTS / "h200", ROOT / "docs" / "throughput.svg")
    else:
        throughput()
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
    axes.set_xticks(users, labels=[f"{count:,}" for count in users])
    axes.set(ylabel="output tokens per second, one H200, block FP8")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)


def throughput() -> None:
    figure, axes = new_figure(7, 4)
    for files, arm, label, style in LINES:
        rows = [
            row
            for file in files
            for row in json.loads((RESULTS / file).read_text())["results"][arm]
        ]
        shown = [row for row in rows if row["input"] == INPUT]
        axes.plot(
            [row["batch"] for row in shown],
            [1e3 * row["batch"] / row["tpot_ms"] for row in shown],
            style,
            label=label,
        )
    axes.set(yscale="log", ylabel="decode tokens per second")
    axes.legend(fontsize=8)
    save(figure, axes, "throughput.svg")


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

"""Draws docs/throughput.svg: decode tok/s against batch, from the files in ci/results.

    python tools/plot_results.py        # needs matplotlib

Owns: which measured rows are shown. What they are and how they were taken: ci/bench_engine.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "ci" / "results"
INPUT = 4096
# files, arm, label, style
LINES = (
    (["h200-tp1.json"], "in-tree", "in-tree, one H200 (30 requests fill it)", "o--"),
    (
        ["h200-tables.json"],
        "device",
        "ours, tables in HBM, before the fused kernels",
        "s-",
    ),
    (
        ["h200-tp1.json", "h200-host-400.json"],
        "host",
        "ours, tables in host memory",
        "o-",
    ),
    (["h200-speculation.json"], "spec", "the same, 3 drafts a step, 3.15 tokens accepted", "d-"),
    (["h100-host.json"], "host", "ours, one H100-80GB", "^-"),
)


def main() -> None:
    pyplot.rcParams["svg.hashsalt"] = "longcat"  # the same file for the same numbers
    figure, axes = pyplot.subplots(figsize=(7, 4))
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
    axes.set(
        xscale="log",
        yscale="log",
        xlabel=f"concurrent requests ({INPUT:,} input tokens each)",
        ylabel="decode tokens per second",
    )
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "throughput.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

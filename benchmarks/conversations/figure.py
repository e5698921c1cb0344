"""Draws reports: time to the first token and cached share, turn by turn, a line for each arm.

    python -m benchmarks.conversations.figure docs/conversations.svg FILE.json [FILE.json ...]

`benchmarks.conversations` draws its own file; this puts the arms of several files into one figure.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import plots

PANELS = {
    "ttft_ms": "time to the first token, median, ms",
    "cached_share": "cached share of the prompt",
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.conversations.figure")
    parser.add_argument("target", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    print(write(joined(args.files), args.target))


def joined(files: list[Path]) -> dict[str, Any]:
    """One report of the arms of all. Raises ValueError if two have the same."""
    results: dict[str, Any] = {}
    for file in files:
        for arm, result in json.loads(file.read_text())["results"].items():
            if arm in results:
                raise ValueError(f"{file}: an earlier file has the arm {arm} too; leave one out")
            results[arm] = result
    return {"results": results}


def write(report: dict[str, Any], target: Path) -> str:
    """The figure, or why there is none: the line to print."""
    if not report.get("results"):
        return "no figure: no arm was measured"
    try:
        figure, panels = plots.new_figure(7, 6, rows=len(PANELS))
    except ImportError:
        return "no figure: matplotlib is not installed (pip install matplotlib)"
    draw(panels, report)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})
    return f"figure: {target}"


def draw(panels: Any, report: dict[str, Any]) -> None:
    turns = sorted({row["turn"] for arm in report["results"].values() for row in arm["runs"]})
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        for arm, result in report["results"].items():
            runs = result["runs"]
            axes.plot([row["turn"] for row in runs], [row[name] for row in runs], "o-", label=arm)
        axes.set(xlabel="turn", ylabel=label)
        axes.set_xticks([turn for turn in turns if turn == 1 or turn % 5 == 0])
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8)


if __name__ == "__main__":
    main()

"""The curves of docs/throughput.svg: decode rate over users, from the files of two recipes.

Owns: which arms are shown, and how the recipes are joined. `benchmarks/plots.py` draws them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILES = ("serving-fp8-latency.json", "serving-fp8-throughput.json")
LABELS = {
    "ours": "ours, 3 drafts a step (acceptance simulated: 3.15 tokens)",
    "no-drafts": "ours without drafts",
    "in-tree": "in-tree",
}
Points = list[tuple[int, float]]  # users and tokens/s


def read(folder: Path) -> dict[str, Points]:
    """By label. Where both recipes were measured with as many users, the faster counts. Raises
    ValueError if no file has one of the arms."""
    reports, curves = _reports(folder), {}
    for arm, label in LABELS.items():
        best: dict[int, float] = {}
        for report in reports:
            for row in report.get(arm, {"runs": []})["runs"]:
                best[row["users"]] = max(row["steady_tok_s"], best.get(row["users"], 0.0))
        if not best:
            raise ValueError(f"{folder} has no run of {arm}: measure it, then draw the figure")
        curves[label] = sorted(best.items())
    return curves


def _reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / name).read_text())["results"] for name in FILES]

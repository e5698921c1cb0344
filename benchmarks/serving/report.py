"""The results of a serving benchmark: a JSON file that grows run by run, and a table."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import commit
from launch.gpus import gpu_count

Columns = Mapping[str, tuple[str, str]]  # heading -> name in a row, and its form
COLUMNS: Columns = {
    "users": ("users", "{:,}"),
    "prompts": ("prompts", "{:,}"),
    "output tok/s": ("tok_s", "{:,.0f}"),
    "steady tok/s": ("steady_tok_s", "{:,.0f}"),
    "TPOT median ms": ("tpot_ms", "{:.3f}"),
    "TPOT p99 ms": ("tpot_p99_ms", "{:.3f}"),
    "TTFT median ms": ("ttft_ms", "{:,.0f}"),
    "tokens a step": ("accept_length", "{:.2f}"),
}


class Report:
    """All arms of one recipe and size. Arms that `path` has from an earlier call are kept."""

    def __init__(
        self,
        path: Path,
        *,
        recipe: str,
        command: str,
        sizes: dict[str, int],
        columns: Columns = COLUMNS,
    ) -> None:
        self.path, self._command, self._columns = path, command, columns
        about = {"recipe": recipe, **sizes}
        self.whole: dict[str, Any] = json.loads(path.read_text()) if path.exists() else about
        before = {name: self.whole.get(name) for name in about}
        if before != about:
            raise SystemExit(
                f"{path} holds {before}, this run is {about}. Write to another file, or remove it."
            )

    def begin(self, arm: str, about: dict[str, Any]) -> None:
        """A new arm, or the old one again: its earlier runs are dropped at the first `add`."""
        self._arm = {"command": self._command, "versions": versions(), **about, "runs": []}
        self._name = arm

    def add(self, row: dict[str, Any]) -> None:
        self._arm["runs"].append(row)
        self.whole.setdefault("results", {})[self._name] = self._arm
        self.path.write_text(json.dumps(self.whole, indent=1))
        print(f"{head(self._columns)}\n{line(self._name, row, self._columns)}", flush=True)

    def table(self) -> str:
        results = self.whole.get("results", {})
        rows = [
            line(arm, row, self._columns)
            for arm, result in results.items()
            for row in result["runs"]
        ]
        return "\n".join([head(self._columns), *rows])


def head(columns: Columns) -> str:
    return f"| arm | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"


def line(arm: str, row: dict[str, Any], columns: Columns) -> str:
    values = ((row[name], form) for name, form in columns.values())
    cells = ("" if value is None else form.format(value) for value, form in values)
    return f"| {arm} | {' | '.join(cells)} |"


def versions() -> dict[str, str]:
    return {
        **{name: version(name) for name in ("sglang", "torch", "triton")},
        "gpu": gpu_name(),
        "commit": commit(),
    }


def gpu_name() -> str:
    """As nvidia-smi says it, because a CUDA context would take half a GiB from the server."""
    if gpu_count() == 0:
        return "none, CPU"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    return f"{len(names)} x {names[0]}"

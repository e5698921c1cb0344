"""Rows of an accuracy report: measured, expected, pass or fail; as JSON and as a Markdown table.

Owns: the form of thresholds.toml, the comparison of numbers with limits, and the two outputs.
nano.py and suites.py measure.
"""

from __future__ import annotations

import json
import math
import platform
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

THRESHOLDS = Path(__file__).with_name("thresholds.toml")
_TITLES = ("gate", "measured", "expected", "difference", "allowed", "sample", "result")


@dataclass(frozen=True)
class Row:
    """One number, which passes if low <= measured <= high. expected: recorded or published."""

    gate: str
    measured: float
    expected: float
    low: float
    high: float
    sample: str
    stderr: float | None = None

    @property
    def passed(self) -> bool:
        return self.low <= self.measured <= self.high

    @property
    def excess(self) -> float:
        """Distance to the expected number, divided by the allowed distance: above 1 the gate
        fails."""
        allowed = (
            self.high - self.expected if self.measured > self.expected else self.expected - self.low
        )
        off = abs(self.measured - self.expected)
        return off / allowed if allowed else math.inf if off else 0.0


def thresholds(*names: str) -> dict[str, Any]:
    """The table [names...] of thresholds.toml. Raises a KeyError that names the existing tables."""
    table: Any = tomllib.loads(THRESHOLDS.read_text())
    for name in names:
        if name not in table:
            raise KeyError(f"thresholds.toml has no {'.'.join(names)}; there are: {sorted(table)}")
        table = table[name]
    return dict(table)


def judge(
    measured: Mapping[str, float], limits: Mapping[str, Mapping[str, Any]], *, prefix: str
) -> list[Row]:
    """One row per limit. Raises KeyError if the number of a limit was not measured."""
    return [
        Row(
            gate=f"{prefix} {name}",
            measured=measured[name],
            expected=limit["measured"],
            low=limit["low"],
            high=limit["high"],
            sample=limit["sample"],
        )
        for name, limit in limits.items()
    ]


def markdown(rows: Iterable[Row]) -> str:
    lines = [_TITLES, ("---",) * len(_TITLES)]
    for row in rows:
        error = f" ± {row.stderr:.2g}" if row.stderr else ""
        lines.append(
            (
                row.gate,
                f"{row.measured:.5g}{error}",
                f"{row.expected:.5g}",
                f"{row.measured - row.expected:+.3g}",
                f"{row.low:.5g} to {row.high:.5g}",
                row.sample,
                "pass" if row.passed else f"FAIL ({row.excess:.3g} x what is allowed)",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(rows: list[Row], out: Path, *, about: Mapping[str, Any]) -> None:
    """Write `out`.json and `out`.md."""
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **about,
    }
    results = [asdict(row) | {"passed": row.passed} for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(facts | {"rows": results}, indent=1) + "\n")
    head = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    out.with_suffix(".md").write_text(f"# Accuracy\n\n{head}\n\n{markdown(rows)}\n")

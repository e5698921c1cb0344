"""`python -m ci.accuracy --record`: measures LongCat-nano and writes its part of thresholds.toml.

Owns: how wide the limits around a measured number are. Run it after a new checkpoint was exported,
and look at the difference: on the same checkpoint only the last digits may change. nano.py
measures.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ci.accuracy.nano import Generate, Oracle, Text, measure, metrics
from ci.accuracy.report import THRESHOLDS
from sglang_longcat.assets import nano
from tests.harness import engine

_BEGIN, _END = "# nano: written by python -m ci.accuracy --record", "# nano: end"
# metric: (allowed, kind). "share" and "difference" allow this much above and below the measured
# number; "at most" and "times" allow 0 up to this much, or this many times the measured number.
# In fp32 only the order of sums differs, so the limits have room for a tie in a router and no more.
# bf16 changes the perplexity by 0.1 %. Its limits are ten times that, and the known mistakes exceed
# them.
_LIMITS: dict[str, dict[str, tuple[float, str]]] = {
    "float32": {
        "perplexity": (1e-3, "share"),
        "top1": (5e-4, "difference"),
        "after_eos_perplexity": (1e-3, "share"),
        "mean_gap": (1e-4, "at most"),
        "max_gap": (2e-3, "at most"),
        "decode_gap": (1e-4, "at most"),
        "golden": (0.0, "difference"),
    },
    "bfloat16": {
        "perplexity": (1e-2, "share"),
        "top1": (5e-3, "difference"),
        "after_eos_perplexity": (4e-2, "share"),
        "mean_gap": (2.5, "times"),
        "decode_gap": (2.5, "times"),
    },
}


def record() -> None:
    """Measure LongCat-nano on the CPU in each dtype and rewrite its part of thresholds.toml."""
    path = nano()
    text = Text.of(path)
    oracle = Oracle.of(path, text)
    tables: list[str] = []
    fp32: dict[str, float] = {}
    for dtype, limits in _LIMITS.items():
        measured = _engine(path, text, oracle, dtype=dtype)
        # The same model with other sums: fp32 is compared with the reference, bf16 with fp32.
        other = fp32 or metrics(text, oracle.scores, oracle.scores)
        fp32 = measured
        for metric, (allowed, kind) in limits.items():
            value = measured[metric]
            noise = abs(other.get(metric, value) - value)
            low, high = _range(value, allowed=allowed, kind=kind)
            tables.append(_table(f"nano.{dtype}.{metric}", value, low, high, noise, text))
    before, rest = THRESHOLDS.read_text().split(_BEGIN)
    after = rest.split(_END)[1]
    THRESHOLDS.write_text(f"{before}{_BEGIN}\n\n{''.join(tables)}{_END}{after}")
    print("".join(tables))


def _engine(
    path: Path, text: Text, oracle: Oracle, *, dtype: str, **flags: Any
) -> dict[str, float]:
    with engine(path, dtype=dtype, max_total_tokens=16384, **flags) as llm:
        generate: Generate = llm.generate
        return measure(generate, text, oracle)


def _range(value: float, *, allowed: float, kind: str) -> tuple[float, float]:
    if kind == "at most":
        return 0.0, allowed
    if kind == "times":
        return 0.0, allowed * value
    width = allowed * value if kind == "share" else allowed
    return value - width, value + width


def _table(name: str, value: float, low: float, high: float, noise: float, text: Text) -> str:
    metric = name.rpartition(".")[2]
    sample = {
        "golden": f"{len(text.golden)} answers",
        "decode_gap": f"{sum(len(entry['output_ids']) for entry in text.golden)} tokens",
        "after_eos_perplexity": f"{sum(int(part.sum()) for part in text.after_eos)} tokens",
    }.get(metric, f"{text.tokens} tokens")
    return (
        f"[{name}]\nmeasured = {value:.6g}\nlow = {low:.6g}\nhigh = {high:.6g}\n"
        f'noise = {noise:.2g}\nsample = "{sample}"\n'
        f"date = {datetime.now(UTC).date()}\n\n"
    )

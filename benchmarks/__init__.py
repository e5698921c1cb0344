"""Measurements: `python -m benchmarks.engine` and its neighbours. CI runs none of them."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"  # a folder per GPU model

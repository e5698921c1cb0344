"""Measurements: `python -m benchmarks.engine` and its neighbours. CI runs none of them."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"  # a folder per GPU model


def commit() -> str:
    """The variable COMMIT, for copies whose git has another commit; otherwise the commit of this
    checkout, with a `+` if there are changes. Empty without git."""
    if given := os.environ.get("COMMIT"):
        return given
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""

"""A package, so that helpers import as `tests.harness`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

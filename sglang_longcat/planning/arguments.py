"""Types of command-line arguments that `serve`, `doctor` and `estimate` have in common.

Owns: the errors about values that no server has. A plan would take them and promise something.
"""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    value = int(text) if text.strip().isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a positive integer")
    return value


def part(text: str) -> float:
    """A share of a whole."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a part of 1, say 0.9")
    return value


def gib(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a size in GiB, say 512")
    return value


def model(text: str) -> str:
    """Not "", as of a shell variable that is not set: the published model would be taken."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: expected a directory or a model's name")
    return text


def _number(text: str) -> float:
    """NaN for what is none, which is in no range."""
    try:
        return float(text)
    except ValueError:
        return math.nan

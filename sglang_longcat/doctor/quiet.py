"""Keeps what other code prints from the terminal, until it is known whether a reader needs it.

SGLang writes some 25 lines while it is imported on a machine without a GPU: by `warnings`, by
`logging`, and from C. They have one thing in common, the file descriptors 1 and 2. So these are
what is redirected, and no text is listed here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Captured:
    """What was written to descriptors 1 and 2; empty until the block of `capture` ends."""

    text: str = ""

    def replay(self) -> None:
        """Prints it to stderr."""
        sys.stderr.write(self.text)
        sys.stderr.flush()


@contextlib.contextmanager
def capture(*, verbose: bool = False) -> Iterator[Captured]:
    """Inside, descriptors 1 and 2 lead to a temporary file. If the block raises, what it wrote is
    printed to stderr. verbose: nothing is redirected.

    `sys.stdout` and `sys.stderr` stay the same objects, because log handlers that the block makes
    keep writing to them after it."""
    captured = Captured()
    if verbose:
        yield captured
        return
    try:
        with tempfile.TemporaryFile() as file:
            try:
                with _redirected(file.fileno()):
                    yield captured
            finally:
                file.seek(0)
                captured.text = file.read().decode(errors="replace")
    except BaseException:  # SystemExit too: SGLang and its plugins stop a process with it
        captured.replay()
        raise


@contextlib.contextmanager
def _redirected(target: int) -> Iterator[None]:
    _flush()
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    try:
        for descriptor in kept:
            os.dup2(target, descriptor)
        yield
    finally:
        _flush()
        for descriptor, original in kept.items():
            os.dup2(original, descriptor)
            os.close(original)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):  # a closed one has nothing to write
            stream.flush()

"""A server for one arm: started, checked by its log, and ended with its workers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.serving import log
from launch import serve

LAST_LINES = 40


class WrongServerError(RuntimeError):
    """The server's model class is not the arm's."""


@contextmanager
def launched(
    command: Sequence[str], env: dict[str, str], *, log_file: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that may not answer yet, so that others can start beside it. Its output goes to
    `log_file`, whose last lines are printed if anything fails."""
    with log_file.open("wb") as out:
        server = subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield server
    except BaseException:
        lines = log_file.read_text(errors="replace").splitlines()[-LAST_LINES:]
        print(f"the last lines of {log_file}:", *lines, sep="\n  ", flush=True)
        raise
    finally:
        serve.stop(server)


def read_log(log_file: Path, module: str) -> dict[str, Any]:
    """The model classes and the tokens of KV cache of a server that is ready."""
    text = log_file.read_text(errors="replace")
    return {"class": require_class(text, module), "kv_tokens": log.kv_tokens(text)}


def require_class(text: str, module: str) -> list[str]:
    """The model classes in the log `text`. Raises WrongServerError unless all are of `module`."""
    found = log.model_classes(text)
    if not found or not all(name.startswith(module) for name in found):
        raise WrongServerError(
            f"the server's model classes are {found}, expected {module}*; nothing is measured. "
            "Its log says why the plugin was, or was not, active."
        )
    return found

"""A child process that prepares something while the server goes on, and its forked workers.

Parent: `Background` starts `python -m MODULE WORK`, hears its lines and waits for it. The request
lies in the folder WORK, pickled. Child: `read_request`, then `run_all` forks its workers.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LONGEST = 900  # seconds that `join` waits: DeepGEMM's 44 kernels of 20 s on one core
SAID = 500  # characters of an error that are passed on
NICENESS = 10  # the server's own work comes first
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # more must not be forked
_PR_SET_PDEATHSIG = 1
_TRACE = "\nC++ trace"  # from here on DeepGEMM's errors list addresses


class BackgroundError(RuntimeError):
    """The child failed, or did not end in time."""


class Background:
    """`python -m module` with a request that can be pickled. `heard` gets each line it prints."""

    def __init__(self, module: str, request: Any) -> None:
        self.begin = time.monotonic()
        self.work = tempfile.TemporaryDirectory(prefix="longcat-")
        Path(self.work.name, "request").write_bytes(pickle.dumps(request))
        with Path(self.work.name, "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, self.work.name],
                env={**os.environ, **ONE_THREAD},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def heard(self, line: str) -> None:
        """A line of the child's, or of a library in it."""

    def join(self, timeout: float = LONGEST) -> float:
        """Waits for the child, and ends it after `timeout` seconds. Returns the seconds since the
        start. BackgroundError with the child's last words if it failed."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            raise BackgroundError(f"not ready after {timeout} s") from None
        self.reader.join()
        said = Path(self.work.name, "stderr").read_text().strip()
        self.work.cleanup()
        if code:
            raise BackgroundError(f"exit {code}: {said[-2 * SAID :] or 'it said nothing'}")
        return time.monotonic() - self.begin

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.heard(line)


def read_request(work: Path) -> Any:
    """For the child. It also ends with its parent, and lets the parent's work go first."""
    die_with_parent()
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    return pickle.loads((work / "request").read_bytes())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process of the machine at a time is inside, for each folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "longcat.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def die_with_parent() -> None:
    """A server that ends leaves no compilers behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run_all(
    works: Iterable[Callable[[], None]], workers: int, ended: Callable[[], None] = lambda: None
) -> int:
    """Runs each of `works` in a forked process, `workers` at a time; `ended` is called after each.
    Returns how many failed; each says why on stderr."""
    waiting, running, failed = deque(works), 0, 0
    while waiting or running:
        if waiting and running < workers:
            _fork(waiting.popleft())
            running += 1
            continue
        failed, running = failed + bool(os.wait()[1]), running - 1
        ended()
    return failed


def _fork(work: Callable[[], None]) -> None:
    if os.fork():
        return
    code = 1
    try:
        die_with_parent()
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001  # nothing may leave a forked process
        said = str(error).partition(_TRACE)[0].strip()  # a compiler's last words are at its end
        print(f"{type(error).__name__}: {said[-SAID:]}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)

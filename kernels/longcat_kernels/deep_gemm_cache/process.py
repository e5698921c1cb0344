"""The server's side of the child process: starts it, logs how far it is, and waits for it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from longcat_kernels.deep_gemm_cache import SAID, Gemm

logger = logging.getLogger(__name__)
LONGEST = 900  # seconds that `join` waits: 44 kernels of 20 s on one core


class CompilationError(RuntimeError):
    """Not all kernels could be compiled."""


class Compilation:
    """Kernels of `gemms` being compiled in the background, into `folder`.

    sms: multiprocessors of the GPU that will run them. workers: processes, one per core if None.
    """

    def __init__(
        self, gemms: Sequence[Gemm], sms: int, folder: Path, workers: int | None = None
    ) -> None:
        self.done = self.total = self.compiled = 0
        self.begin = time.monotonic()
        self.work = tempfile.TemporaryDirectory(prefix="deep-gemm-")
        request = {
            "gemms": [gemm._replace(rows=list(gemm.rows)) for gemm in gemms],
            "sms": sms,
            "folder": str(folder),
            "workers": workers or len(os.sched_getaffinity(0)),
        }
        Path(self.work.name, "request.json").write_text(json.dumps(request))
        with Path(self.work.name, "stderr").open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "longcat_kernels.deep_gemm_cache.child", self.work.name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def join(self, timeout: float = LONGEST) -> float:
        """Waits for the child, and ends it after `timeout` seconds. Returns the seconds since the
        start. CompilationError with the reason if a kernel is missing."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            raise CompilationError(
                f"still at {self.done} of {self.total} kernels after {timeout} s"
            ) from None
        self.reader.join()
        said = Path(self.work.name, "stderr").read_text().strip()
        self.work.cleanup()
        if code:
            raise CompilationError(f"exit {code}: {said[-2 * SAID :] or 'it said nothing'}")
        return time.monotonic() - self.begin

    def _read(self) -> None:
        """Logs about four lines. Lines that are not the child's own come from libraries."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            self.compiled = said.get("compiled", self.compiled)
            if "done" in said:
                self._progress(said["done"], said["total"])

    def _progress(self, done: int, total: int) -> None:
        quarter = done * 4 // total > self.done * 4 // total
        self.done, self.total = done, total
        if quarter:
            logger.info("DeepGEMM: %d of %d kernels compiled", done, total)

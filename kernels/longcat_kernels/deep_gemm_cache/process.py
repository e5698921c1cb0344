"""The server's side of the child process that compiles: starts it, and logs how far it is."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from longcat_kernels.background import Background
from longcat_kernels.deep_gemm_cache import Gemm, Request

logger = logging.getLogger(__name__)
CHILD = "longcat_kernels.deep_gemm_cache.child"


class Compilation(Background):
    """Kernels of `gemms` being compiled in the background, into `folder`.

    sms: multiprocessors of the GPU that will run them. workers: processes, one per core if None.
    After `join`, `total` is how many GEMMs with a kernel of their own there are, and `compiled` how
    many kernels were not in the cache.
    """

    def __init__(
        self, gemms: Sequence[Gemm], sms: int, folder: Path, workers: int | None = None
    ) -> None:
        self.done = self.total = self.compiled = 0
        workers = workers or len(os.sched_getaffinity(0))
        super().__init__(CHILD, Request(tuple(gemms), sms, folder, workers))

    def heard(self, line: str) -> None:
        """Logs about four lines."""
        if not line.startswith("{"):
            return
        said = json.loads(line)
        self.compiled = said.get("compiled", self.compiled)
        done, self.total = said.get("done", self.done), said.get("total", self.total)
        quarter = done * 4 // max(self.total, 1) > self.done * 4 // max(self.total, 1)
        self.done = done
        if quarter:
            logger.info("DeepGEMM: %d of %d kernels compiled", done, self.total)

"""Compiles our Triton kernels in a child process without a GPU, into Triton's cache on disk.

    WarmUpAhead(sizes, pdl=True).join()         # sizes: `warm_up.Sizes` of the server

`warm_up` compiles one variant after the other, 20 s with an empty cache. The child forks a process
for each operation, with `compile_only`, so it takes as long as the slowest of them and can run
while weights load. `warm_up` then finds the variants on disk, and compiles any that are missing.
A lock lets ranks compile each variant once. For Hopper only, as `compile_only`.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import partial
from pathlib import Path

from longcat_kernels import dispatch
from longcat_kernels.background import Background, locked, read_request, run_all
from longcat_kernels.compile_only import compile_only
from longcat_kernels.warm_up import HOPPER_SM, OPS, Sizes


class WarmUpAhead(Background):
    """Starts the child. pdl: what `dispatch.allow_pdl` was given, which decides variants."""

    def __init__(self, sizes: Sizes, pdl: bool) -> None:
        super().__init__("longcat_kernels.warm_up_ahead", (sizes, pdl))


def main(work: Path) -> int:
    from triton import knobs

    sizes, pdl = read_request(work)
    dispatch.allow_pdl(pdl)
    with locked(Path(knobs.cache.dir)), compile_only(HOPPER_SM):
        warm_ups = [partial(_warm_up, op, sizes) for op in OPS]
        return min(run_all(warm_ups, workers=len(os.sched_getaffinity(0))), 1)


def _warm_up(op: str, sizes: Sizes) -> None:
    importlib.import_module(f"longcat_kernels.{op}.warm_up").warm_up("cpu", sizes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

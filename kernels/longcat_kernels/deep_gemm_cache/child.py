"""The child process: lists the kernels that GEMMs need, and compiles those that are missing.

    python -m longcat_kernels.deep_gemm_cache.child WORK

WORK has the request (`background`, `Request`). Prints one line of JSON per kernel, {"done": 3,
"total": 44}, and at the end {"compiled": 12}. Exits with 1 and an explanation on stderr if a kernel
could not be compiled. A lock on the cache lets several servers and ranks compile each kernel once.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import sys
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

from longcat_kernels.background import locked, read_request, run_all
from longcat_kernels.deep_gemm_cache import Gemm, Request
from longcat_kernels.deep_gemm_cache.compilers import (
    CompilerError,
    build_stand_in,
    write_pretended,
)


def main(work: Path) -> int:
    request: Request = read_request(work)
    if not hasattr(ctypes.CDLL(None), "no_gpu_loads"):
        try:
            restart(build_stand_in(work, request.sms))
        except CompilerError as error:
            print(error, file=sys.stderr)
            return 1
    os.environ["DG_JIT_CACHE_DIR"] = str(request.folder)
    import deep_gemm  # noqa: F401  # before the forks, so that it is imported once

    if run_all([partial(list_kernels, request.gemms, work)], workers=1):
        return 1
    with locked(request.folder):
        return compile_kernels(pickle.loads((work / "kernels").read_bytes()), request)


def restart(library: Path) -> None:
    """Starts this program again with the stand-in preloaded. It replaces other preloaded libraries
    (SGLang's memory saver hooks cudaMalloc too) and torch's allocator settings."""
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    environment.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    environment.pop("PYTORCH_ALLOC_CONF", None)
    os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], environment)


def list_kernels(gemms: Sequence[Gemm], work: Path) -> None:
    """Writes the GEMMs that need a kernel which none before them needs, each with one number of
    rows, to WORK/kernels. In a fork, because a process that has used torch's GPU cannot be forked
    any more, and DeepGEMM keeps the pretended kernels that it has loaded."""
    os.environ["DG_JIT_NVCC_COMPILER"] = str(write_pretended(work))
    os.environ["DG_JIT_CACHE_DIR"] = str(work / "pretended")
    from longcat_kernels.deep_gemm_cache.calls import caller

    loads = ctypes.CDLL(None).no_gpu_loads
    kernels: list[Gemm] = []
    for gemm in gemms:
        call = caller(gemm)
        for rows in gemm.rows:
            before = loads()
            call(rows)
            if loads() > before:
                kernels.append(gemm._replace(rows=(rows,)))
    (work / "kernels").write_bytes(pickle.dumps(kernels))


def compile_kernels(kernels: Sequence[Gemm], request: Request) -> int:
    """Compiles each kernel in a process of its own. Returns the exit code."""
    before, done = compiled(request.folder), count(1)
    failed = run_all(
        [partial(compile_one, gemm) for gemm in kernels],
        request.workers,
        lambda: print(json.dumps({"done": next(done), "total": len(kernels)}), flush=True),
    )
    print(json.dumps({"compiled": compiled(request.folder) - before}), flush=True)
    if failed:
        print(f"{failed} of {len(kernels)} kernels did not compile", file=sys.stderr)
    return min(failed, 1)


def compiled(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.cubin"))


def compile_one(gemm: Gemm) -> None:
    from longcat_kernels.deep_gemm_cache.calls import caller

    caller(gemm)(*gemm.rows)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""The child process: lists the kernels that GEMMs need, and compiles those that are missing.

    python -m longcat_kernels.deep_gemm_cache.child WORK

WORK/request.json has `gemms`, `sms`, `folder` (DeepGEMM's cache) and `workers`. Prints one line of
JSON per kernel, {"done": 3, "total": 44}, and at the end {"compiled": 12}. Exits with 1 and an
explanation on stderr if a kernel could not be compiled. A lock on the cache lets several servers
and ranks compile each kernel once.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from longcat_kernels.deep_gemm_cache import SAID, Gemm
from longcat_kernels.deep_gemm_cache.compilers import CompilerError, build_stand_in, write_pretended

NICENESS = 10  # the server's own work comes first
_PR_SET_PDEATHSIG = 1
_TRACE = "\nC++ trace"  # from here on DeepGEMM's errors list addresses


def main(work: Path) -> int:
    request = json.loads((work / "request.json").read_text())
    if not hasattr(ctypes.CDLL(None), "no_gpu_loads"):
        try:
            restart(build_stand_in(work, request["sms"]))
        except CompilerError as error:
            print(error, file=sys.stderr)
            return 1
    die_with_parent()
    os.nice(NICENESS)
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["DG_JIT_CACHE_DIR"] = str(folder)
    gemms = [Gemm(*fields) for fields in request["gemms"]]
    import deep_gemm  # noqa: F401  # before the forks, so that it is imported once

    with (folder / "longcat.lock").open("w") as lock:
        if os.waitpid(fork(partial(list_kernels, gemms, work)), 0)[1]:
            return 1
        fcntl.flock(lock, fcntl.LOCK_EX)
        return compile_kernels(json.loads((work / "kernels.json").read_text()), request)


def restart(library: Path) -> None:
    """Starts this program again with the stand-in preloaded. It replaces other preloaded libraries
    (SGLang's memory saver hooks cudaMalloc too) and torch's allocator settings. One thread, because
    a process with more must not be forked."""
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment = {**os.environ, **threads, "LD_PRELOAD": str(library)}
    environment.pop("PYTORCH_CUDA_ALLOC_CONF", None)
    environment.pop("PYTORCH_ALLOC_CONF", None)
    os.execve(sys.executable, [sys.executable, "-m", __spec__.name, *sys.argv[1:]], environment)


def die_with_parent() -> None:
    """A server that ends leaves no compilers behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def fork(work: Callable[[], None]) -> int:
    """Runs `work` in a forked process, which torch allows as long as its parent has made no tensor
    on a GPU. Returns the process."""
    process = os.fork()
    if process:
        return process
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


def list_kernels(gemms: list[Gemm], work: Path) -> None:
    """Writes one (gemm, rows) for each kernel, to WORK/kernels.json: the first that needs it."""
    os.environ["DG_JIT_NVCC_COMPILER"] = str(write_pretended(work))
    os.environ["DG_JIT_CACHE_DIR"] = str(work / "pretended")
    from longcat_kernels.deep_gemm_cache.calls import caller

    loads = ctypes.CDLL(None).no_gpu_loads
    kernels: list[tuple[Gemm, int]] = []
    for gemm in gemms:
        call = caller(gemm)
        for rows in gemm.rows:
            before = loads()
            call(rows)
            if loads() > before:
                kernels.append((gemm._replace(rows=[rows]), rows))
    (work / "kernels.json").write_text(json.dumps(kernels))


def compile_kernels(kernels: list[Any], request: dict[str, Any]) -> int:
    """Compiles each kernel in a process of its own, `workers` at a time. Returns the exit code."""
    folder, waiting, running, failed = Path(request["folder"]), list(kernels), 0, 0
    before = compiled(folder)
    while waiting or running:
        if waiting and running < request["workers"]:
            fields, rows = waiting.pop(0)
            fork(partial(compile_one, Gemm(*fields), rows))
            running += 1
            continue
        failed, running = failed + bool(os.wait()[1]), running - 1
        done = len(kernels) - len(waiting) - running
        print(json.dumps({"done": done, "total": len(kernels)}), flush=True)
    print(json.dumps({"compiled": compiled(folder) - before}), flush=True)
    if failed:
        print(f"{failed} of {len(kernels)} kernels did not compile", file=sys.stderr)
    return min(failed, 1)


def compiled(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*.cubin"))


def compile_one(gemm: Gemm, rows: int) -> None:
    from longcat_kernels.deep_gemm_cache.calls import caller

    caller(gemm)(rows)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

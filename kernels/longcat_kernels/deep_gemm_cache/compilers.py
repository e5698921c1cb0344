"""The compilers of the child process: CUDA's own, the stand-in for CUDA, and the pretended one."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from longcat_kernels.background import SAID

SOURCE = Path(__file__).with_name("no_gpu.c")

# Says the version of the real compiler, which DeepGEMM checks, and writes the smallest file that
# DeepGEMM takes for a compiled kernel: it looks at the first four bytes.
_PRETENDED = """#!/bin/sh
[ "$1" = --version ] && exec '{nvcc}' --version
while [ $# -gt 0 ]; do
    [ "$1" = --output-file ] && {{ printf '\\177ELF0000000000000000' > "$2"; exit; }}
    shift
done
exit 1
"""


class CompilerError(RuntimeError):
    """The machine has no compiler, or it failed."""


def find_nvcc() -> Path:
    """CUDA's compiler, by the same rules as DeepGEMM. CompilerError if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if chosen := os.environ.get("DG_JIT_NVCC_COMPILER"):
        path = Path(chosen)
    elif home:
        path = Path(home, "bin", "nvcc")
    else:
        path = Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc")
    if not os.access(path, os.X_OK):
        raise CompilerError(
            f"{path}: no CUDA compiler there, expected nvcc of CUDA 12.9 or newer. Install it, or "
            "set CUDA_HOME to the folder that has bin/nvcc."
        )
    return path


def build_stand_in(folder: Path, sms: int) -> Path:
    """Compiles `no_gpu.c` for a GPU of `sms` multiprocessors. Returns the library."""
    library = folder / "no_gpu.so"
    command = [
        str(find_nvcc()),
        "-shared",
        "-cudart",
        "none",
        f"-DSMS={sms}",
        "-Xcompiler",
        "-fPIC",
    ]
    command += ["-Xlinker", "-soname=libcuda.so.1"]
    command += ["-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()
        raise CompilerError(
            f"{SOURCE.name} did not compile (exit {done.returncode}): {said[-SAID:]}. Expected "
            "nvcc with a C compiler; install gcc."
        )
    return library


def write_pretended(folder: Path) -> Path:
    script = folder / "nvcc"
    script.write_text(_PRETENDED.format(nvcc=find_nvcc()))
    script.chmod(0o755)
    return script

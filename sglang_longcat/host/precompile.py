"""Compiles DeepGEMM's kernels while weights load, with LONGCAT_PARALLEL_COMPILE=1.

Without it DeepGEMM compiles one kernel after the other while SGLang captures graphs (or, by
SGLang's default, for minutes at the first GEMM of each shape). Owns when the compilation starts,
where it is joined, and what the log says.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch
from torch import nn

from longcat_kernels.deep_gemm_cache.process import Compilation, CompilationError
from sglang_longcat import env

logger = logging.getLogger(__name__)
_running: list[Compilation] = []  # of this process, at most one


def register() -> None:
    """Switches SGLang's own precompilation off, unless the user has set it. SGLang reads the
    variable when a scheduler imports its wrapper of DeepGEMM, so it is set in the process that
    starts schedulers."""
    from sglang.srt.environ import envs

    if env.parallel_compile() and not envs.SGLANG_JIT_DEEPGEMM_PRECOMPILE.is_set():
        envs.SGLANG_JIT_DEEPGEMM_PRECOMPILE.set(False)


def start(model: nn.Module) -> None:
    """Starts a child process that compiles the kernels of a model whose layers are built. Every
    rank does so; a lock on the cache's folder gives each kernel to one of them."""
    if not env.parallel_compile() or not torch.cuda.is_available():
        return
    from sglang.srt.environ import envs

    from sglang_longcat.host.deep_gemm import gemms

    wanted = gemms(model)
    if not wanted:
        logger.info("LONGCAT_PARALLEL_COMPILE=1: no layer of this model is DeepGEMM's")
        return
    sms = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    _running.append(Compilation(wanted, sms, Path(envs.SGLANG_DG_CACHE_DIR.get())))


def join() -> None:
    """Waits for the child process, if one was started. A failure is a warning: DeepGEMM compiles
    what is missing when it meets it."""
    if not _running:
        return
    compilation, begin = _running.pop(), time.monotonic()
    try:
        seconds = compilation.join()
    except CompilationError as error:
        logger.warning(
            "DeepGEMM: the kernels were not all compiled ahead (%s). The start goes on; DeepGEMM "
            "compiles each missing one when it meets it, which makes graph capture slow.",
            error,
        )
        return
    logger.info(
        "DeepGEMM: kernels ready after %.1f s, %d of them compiled now; the start waited %.1f s",
        seconds,
        compilation.compiled,
        time.monotonic() - begin,
    )

"""Compiles kernels while weights load, unless LONGCAT_PARALLEL_COMPILE=0: DeepGEMM's, our own, and
the CUDA modules of SGLang and flashinfer.

Without it DeepGEMM compiles one kernel after the other while SGLang captures graphs (or, by
SGLang's default, for minutes at the first GEMM of each shape), CUDA modules are built there too,
and our Triton kernels wait for the weights. Child processes without a GPU compile DeepGEMM's and
Triton's into the caches on disk, threads build the modules (`cuda_modules.py`). Owns when they
start, where they are joined, and what the log says. For Hopper.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from longcat_kernels.background import BackgroundError
from longcat_kernels.deep_gemm_cache.process import Compilation
from longcat_kernels.dispatch import HOPPER
from longcat_kernels.row_table import RowTable
from longcat_kernels.warm_up_ahead import WarmUpAhead
from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.host import resolution
from sglang_longcat.host.cuda_modules import CudaModules, before_graphs, before_requests

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)
STEP = "handle_environment_variables"


class Compiling(Protocol):
    def join(self) -> float:
        """Waits. Returns the seconds since the start; BackgroundError if something failed."""


_running: dict[str, Compiling] = {}  # of this process, by what it compiles
PRECOMPILE = resolution.OwnVariable("SGLANG_JIT_DEEPGEMM_PRECOMPILE")


def settle(server_args: ServerArgs, previous: Callable[[ServerArgs], None]) -> None:
    """Runs SGLang's step, then switches SGLang's own precompilation off where ours takes its place,
    unless the user has set it. SGLang reads the variable when a scheduler imports its wrapper of
    DeepGEMM, so it is set in the process that starts schedulers."""
    PRECOMPILE.release()
    previous(server_args)
    if _takes_its_place(server_args):
        PRECOMPILE.set_unless_given(False)


def _takes_its_place(server_args: ServerArgs) -> bool:
    """Not in SGLang's `compile_deep_gemm`, whose purpose it is."""
    from sglang.srt.environ import envs

    if envs.SGLANG_IN_DEEPGEMM_PRECOMPILE_STAGE.get():
        return False
    return resolution.is_ours_on_cuda(server_args) and _compiles_deep_gemm()


def register() -> None:
    resolution.wrap(STEP, settle)


def start_cuda_modules(config: LongcatConfig, *, shares_experts: bool, drafts: bool) -> None:
    """Call it before the layers are built. shares_experts: with expert parallel. drafts: with
    speculation."""
    if _enabled():
        awaited = before_graphs(config, shares_experts=shares_experts)
        _running["CUDA modules"] = CudaModules(awaited, before_requests(drafts=drafts))


def start_deep_gemm(layers: nn.Module, hidden: int) -> None:
    """Call it once the layers are built; hidden: the model's width. Every rank does so, and a lock
    on the cache's folder gives each kernel to one of them."""
    if not _compiles_deep_gemm():
        return
    from sglang.srt.environ import envs

    from sglang_longcat.host.deep_gemm import gemms

    wanted = gemms(layers, hidden)
    if not wanted:
        return
    sms = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    _running["DeepGEMM"] = Compilation(wanted, sms, Path(envs.SGLANG_DG_CACHE_DIR.get()))


def start_triton(config: LongcatConfig, rows: RowTable) -> None:
    """Call it once the place of the n-gram tables is known. rows: those of this rank."""
    if not _enabled():
        return
    from sglang.srt.runtime_context import process_model_config

    from sglang_longcat.host.kernel_warm_up import server_sizes

    sizes = server_sizes(config, process_model_config().dtype, rows)
    _running["Triton kernels"] = WarmUpAhead(sizes, env.pdl())


def join() -> None:
    """Waits for the child processes that were started. A failure is a warning: whoever meets a
    missing kernel compiles it."""
    while _running:
        name = next(iter(_running))
        _join(name, _running.pop(name))


def _join(name: str, child: Compiling) -> None:
    begin = time.monotonic()
    try:
        seconds = child.join()
    except BackgroundError as error:
        logger.warning(
            "%s: not all compiled ahead (%s). The start goes on and compiles each missing kernel "
            "when it meets it, one after the other.",
            name,
            error,
        )
        return
    new = f", {child.compiled} of them new" if isinstance(child, Compilation) else ""
    waited = time.monotonic() - begin
    logger.info(
        "%s: compiled ahead in %.1f s%s; the start waited %.1f s", name, seconds, new, waited
    )


def _compiles_deep_gemm() -> bool:
    """With nvcc only: the child has no other compiler."""
    from sglang.srt.environ import envs

    return _enabled() and not envs.SGLANG_DG_USE_NVRTC.get()


def _enabled() -> bool:
    from sglang.srt.utils import is_cpu

    if not env.parallel_compile() or is_cpu() or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() == HOPPER

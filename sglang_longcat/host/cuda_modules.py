"""CUDA modules of SGLang and flashinfer that a server needs, built side by side while weights load.

SGLang builds each of them with nvcc where a forward first calls it: one after the other, inside the
capture of graphs and the first requests. On an H200 with cold caches these builds were 50 of the
84 s of a scheduler's start (2026-11-30). flashinfer's norm takes longest, 37 s. Both libraries lock
what they build, so a forward that comes too early waits for the same build.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import torch

from longcat_kernels.background import LONGEST, BackgroundError
from longcat_kernels.fp8_layout import GROUP
from sglang_longcat.config import LongcatConfig

Loader = Callable[[], object]
logger = logging.getLogger(__name__)


class CudaModules:
    """Starts all `awaited` and `later` builds. Threads, because nvcc is a process of its own and
    the libraries ask the GPU for its architecture, which costs another process 0.5 GiB of it."""

    def __init__(self, awaited: Sequence[Loader], later: Sequence[Loader] = ()) -> None:
        self.begin = time.monotonic()
        self._awaited = [_build(load) for load in awaited]
        for build in map(_build, later):
            build.add_done_callback(_log_failure)

    def join(self) -> float:
        """Waits for the awaited builds, and returns the seconds since the start. BackgroundError if
        one failed, or waits for a compiler or a lock of another machine for too long."""
        for build in self._awaited:
            left = self.begin + LONGEST - time.monotonic()
            try:
                error = build.exception(timeout=max(0.0, left))
            except TimeoutError:
                raise BackgroundError(f"a CUDA module is not ready after {LONGEST} s") from None
            if error is not None:
                raise BackgroundError(f"{type(error).__name__}: {error}") from error
        return time.monotonic() - self.begin


def _build(load: Loader) -> Future[object]:
    """In a daemon thread: a start that fails does not wait for nvcc, as it would for an executor's
    threads. An nvcc that runs then ends by itself."""
    build: Future[object] = Future()

    def run() -> None:
        try:
            build.set_result(load())
        except BaseException as error:  # noqa: BLE001  # nobody would see it in a thread
            build.set_exception(error)

    threading.Thread(target=run, name="longcat-cuda-module", daemon=True).start()
    return build


def _log_failure(build: Future[object]) -> None:
    """Of a build that nobody waits for."""
    if error := build.exception():
        logger.warning("a CUDA module was not built ahead: %s: %s", type(error).__name__, error)


def before_graphs(config: LongcatConfig, *, shares_experts: bool) -> list[Loader]:
    """What the first graphs of `config`'s weights call on one GPU, as the folders of an H200's
    caches showed. shares_experts: expert parallel, whose Marlin module is another one."""
    from sglang.kernels.jit.utils import is_arch_support_pdl
    from sglang.kernels.ops.activation.activation import activation_module
    from sglang.kernels.ops.attention.clamp_position import _jit_clamp_position_module
    from sglang.kernels.ops.attention.rope import _jit_fused_rope_module
    from sglang.kernels.ops.kvcache.set_mla_kv_buffer import set_mla_kv_buffer_module

    rope, bf16 = config.qk_rope_head_dim, torch.bfloat16
    loaders: list[Loader] = [
        partial(activation_module, bf16),
        partial(_jit_clamp_position_module, torch.int64),
        partial(_jit_fused_rope_module, False, rope, bf16, bf16),  # not neox: pairs are neighbours
        partial(set_mla_kv_buffer_module, 2 * config.kv_lora_rank, 2 * rope, is_arch_support_pdl()),
    ]
    if config.weight_format == "block-fp8":
        kinds = (True, False), (False, False), (False, True)
        loaders += [partial(_quantiser, row_major=row, swiglu=swiglu) for row, swiglu in kinds]
        loaders.append(_quantising_norm)
    if config.weight_format == "int4":
        loaders += _marlin(shares_experts)
    return loaders


def before_requests(*, drafts: bool) -> list[Loader]:
    """What no graph calls. drafts: with speculation, whose first step would wait 10 s for nvcc."""
    from flashinfer.sampling import get_sampling_module
    from sglang.kernels.ops.speculative.tree import _jit_tree_module

    return [get_sampling_module, *([_jit_tree_module] if drafts else [])]


def _quantising_norm() -> object:
    """Of `layers/fp8_inputs.py`. flashinfer's other norms are no CUDA module."""
    from flashinfer.norm import get_norm_module

    return get_norm_module()


def _quantiser(*, row_major: bool, swiglu: bool) -> object:
    """Of groups of 128 values. Scales by row: SGLang's experts. By column: DeepGEMM."""
    from sglang.kernels.jit.utils import is_arch_support_pdl
    from sglang.kernels.ops.quantization.per_token_group_quant import _jit_module

    # By position, as SGLang passes them: its cache of modules takes names for another call.
    return _jit_module(
        torch.bfloat16,
        torch.float8_e4m3fn,
        GROUP,
        False,  # scale_ue8m0
        row_major,
        True,  # aligned: fp32 scales always are
        swiglu,
        False,  # masked_layout
        is_arch_support_pdl(),
        False,  # sorted_layout
        "dense" if swiglu else "legacy",  # silu_and_mul_mode, as `layers/fp8_inputs.py` asks for it
    )


def _marlin(shares_experts: bool) -> list[Loader]:
    """Each takes nvcc 310 to 490 s of a core (2026-11-30). The experts' two GEMMs are two
    modules, which differ in whether unused rows of the output become zeros."""
    from sglang.kernels.ops.gemm.gptq_marlin import _jit_gptq_marlin_module
    from sglang.kernels.ops.moe.moe_wna16_marlin import _jit_moe_wna16_marlin_module

    bf16, alone = torch.bfloat16, not shares_experts
    experts = [
        partial(_jit_moe_wna16_marlin_module, bf16, shares_experts, False, alone, zeros, alone)
        for zeros in (False, True)
    ]
    return [partial(_jit_gptq_marlin_module, bf16), *experts]

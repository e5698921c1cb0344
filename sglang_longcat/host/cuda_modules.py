"""CUDA modules of SGLang and flashinfer that a server needs, built side by side while weights load.

SGLang builds each of them with nvcc where a forward first calls it: one after the other, inside the
capture of the first graph, and flashinfer's sampling inside the first request that samples. On an
H200 with cold caches 50 of the 84 s of a scheduler's start were these builds (2026-11-30). Both
libraries lock what they build, so a forward that comes too early waits for the same build.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from longcat_kernels.background import BackgroundError
from longcat_kernels.fp8_layout import GROUP
from sglang_longcat.config import LongcatConfig

Loader = Callable[[], object]


class CudaModules:
    """Starts all `awaited` and `later` builds. Threads, because nvcc is a process of its own and
    the libraries ask the GPU for its architecture, which costs another process 0.5 GiB of it."""

    def __init__(self, awaited: Sequence[Loader], later: Sequence[Loader] = ()) -> None:
        self.begin = time.monotonic()
        pool = ThreadPoolExecutor(len(awaited) + len(later), "longcat-cuda-modules")
        self._awaited = [pool.submit(load) for load in awaited]
        for load in later:
            pool.submit(load)
        pool.shutdown(wait=False)

    def join(self) -> float:
        """Waits for the awaited builds, and returns the seconds since the start. BackgroundError if
        one failed."""
        for build in self._awaited:
            if (error := build.exception()) is not None:
                raise BackgroundError(f"{type(error).__name__}: {error}") from error
        return time.monotonic() - self.begin


def before_graphs(config: LongcatConfig, *, shares_experts: bool) -> list[Loader]:
    """What a first graph of `config`'s weights calls on one GPU, as the folders of an H200's caches
    showed. shares_experts: expert parallel, whose Marlin module is another one."""
    from flashinfer.norm import get_norm_module
    from sglang.kernels.jit.utils import is_arch_support_pdl
    from sglang.kernels.ops.activation.activation import activation_module
    from sglang.kernels.ops.attention.rope import _jit_fused_rope_module
    from sglang.kernels.ops.kvcache.set_mla_kv_buffer import set_mla_kv_buffer_module

    rope, bf16 = config.qk_rope_head_dim, torch.bfloat16
    loaders: list[Loader] = [
        get_norm_module,
        partial(activation_module, bf16),
        partial(_jit_fused_rope_module, False, rope, bf16, bf16),  # not neox: pairs are neighbours
        partial(set_mla_kv_buffer_module, 2 * config.kv_lora_rank, 2 * rope, is_arch_support_pdl()),
    ]
    if config.weight_format == "block-fp8":
        kinds = (True, False), (False, False), (False, True)
        loaders += [partial(_quantiser, row_major=row, swiglu=swiglu) for row, swiglu in kinds]
    if config.weight_format == "int4":
        loaders += _marlin(shares_experts)
    return loaders


def before_requests() -> list[Loader]:
    from flashinfer.sampling import get_sampling_module

    return [get_sampling_module]


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
        "legacy",  # silu_and_mul_mode
    )


def _marlin(shares_experts: bool) -> list[Loader]:
    """Each takes nvcc 440 to 490 s of a busy core (2026-11-30). The experts' two GEMMs are two
    modules, which differ in whether unused rows of the output become zeros."""
    from sglang.kernels.ops.gemm.gptq_marlin import _jit_gptq_marlin_module
    from sglang.kernels.ops.moe.moe_wna16_marlin import _jit_moe_wna16_marlin_module

    bf16, alone = torch.bfloat16, not shares_experts
    experts = [
        partial(_jit_moe_wna16_marlin_module, bf16, shares_experts, False, alone, zeros, alone)
        for zeros in (False, True)
    ]
    return [partial(_jit_gptq_marlin_module, bf16), *experts]

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

import torch

from longcat_kernels.background import BackgroundError
from longcat_kernels.fp8_layout import GROUP

Loader = Callable[[], object]


class CudaModules:
    """Starts all `awaited` and `later` builds. Threads, because nvcc is a process of its own and
    the libraries ask the GPU for its architecture, which costs another process 0.5 GiB of it."""

    def __init__(self, awaited: Sequence[Loader], later: Sequence[Loader] = ()) -> None:
        self.begin = time.monotonic()
        self._pool = ThreadPoolExecutor(len(awaited) + len(later), "longcat-cuda-modules")
        self._awaited = [self._pool.submit(load) for load in awaited]
        for load in later:
            self._pool.submit(load)
        self._pool.shutdown(wait=False)

    def join(self) -> float:
        """Waits for the awaited builds, and returns the seconds since the start. BackgroundError if
        one failed."""
        for build in self._awaited:
            if (error := build.exception()) is not None:
                raise BackgroundError(f"{type(error).__name__}: {error}") from error
        return time.monotonic() - self.begin


def before_graphs(*, fp8: bool) -> list[Loader]:
    """fp8: whether weights are block FP8, whose projections and experts take quantised inputs."""
    from flashinfer.norm import get_norm_module
    from sglang.kernels.ops.activation.activation import activation_module

    loaders: list[Loader] = [get_norm_module, lambda: activation_module(torch.bfloat16)]
    if fp8:
        loaders += [lambda: _quantiser(row_major=True), lambda: _quantiser(row_major=False)]
    return loaders


def before_requests() -> list[Loader]:
    from flashinfer.sampling import get_sampling_module

    return [get_sampling_module]


def _quantiser(*, row_major: bool) -> object:
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
        False,  # fuse_silu_and_mul
        False,  # masked_layout
        is_arch_support_pdl(),
        False,  # sorted_layout
        "legacy",  # silu_and_mul_mode
    )

"""Compiles variants of the expert GEMM on all CPU cores, into Triton's cache on disk.

Owns the worker processes and which launches share one compiled kernel. The workers are forked
before the parent uses its GPU, and need none: they launch on CPU tensors, see `compile_only`.
"""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Sequence

import torch

from benchmarks.tune.experts.launch import (
    Batch,
    Layer,
    Rows,
    Shape,
    align,
    input_rows,
    launch,
    make_batch,
    make_layer,
    make_routing,
)
from benchmarks.tune.experts.search import Job
from benchmarks.tune.experts.space import SHARED_MEMORY, Variant
from longcat_kernels.compile_only import compile_only
from longcat_kernels.lite import TOP_K
from longcat_kernels.warm_up import HOPPER_SM

_EARLY = 512  # rows of input up to which SGLang lets the next kernel start early
Key = tuple[Variant, bool, bool]


def key_of(shape: Shape, tokens: int, variant: Variant) -> Key:
    """Launches with equal keys share one compiled kernel. Besides the tile it depends on the rows
    of the input, and on whether 16 divides the number of slots."""
    rows = tokens if variant.op == "up" else input_rows(shape, tokens, variant)
    return variant, rows <= _EARLY, tokens * TOP_K % 16 == 0


def compile_one(shape: Shape, fp8: bool, tokens: int, variant: Variant) -> bool:
    """Whether it compiles, and fits into shared memory."""
    from triton.errors import TritonError

    try:
        with compile_only(HOPPER_SM, shared_memory=SHARED_MEMORY):
            rows = _rows(shape, tokens, variant.tile.m)
            launch(variant, _layer(shape, fp8), _batch(shape, fp8, tokens), rows)
    except (TritonError, RuntimeError):
        return False
    return True


def _in_time(work: tuple[Shape, bool, Job, float]) -> bool | None:
    """None if the time was up before it began. Linux has one monotonic clock for all processes."""
    shape, fp8, job, end = work
    return compile_one(shape, fp8, *job) if time.monotonic() < end else None


@functools.lru_cache(maxsize=1)
def _layer(shape: Shape, fp8: bool) -> Layer:
    return make_layer(shape, "cpu", fp8=fp8)


@functools.lru_cache(maxsize=4)
def _batch(shape: Shape, fp8: bool, tokens: int) -> Batch:
    return make_batch(shape, tokens, "cpu", fp8=fp8)


@functools.lru_cache(maxsize=64)
def _rows(shape: Shape, tokens: int, rows: int) -> Rows:
    return align(shape, make_routing(shape, tokens, seed=0), rows)


class Compiler:
    """`compile_all(jobs, seconds)` returns the jobs that are ready to launch."""

    def __init__(self, shape: Shape, *, fp8: bool, workers: int) -> None:
        _settle()
        self.shape, self.fp8 = shape, fp8
        self.pool = multiprocessing.get_context("fork").Pool(workers, initializer=_begin)
        self.ready: dict[Key, bool] = {}

    def compile_all(self, jobs: Sequence[Job], seconds: float) -> set[Job]:
        keys = {job: key_of(self.shape, *job) for job in jobs}
        todo: dict[Key, Job] = {}
        for job, key in keys.items():
            if key not in self.ready:
                todo.setdefault(key, job)
        begin = time.monotonic()
        work = [(self.shape, self.fp8, job, begin + seconds) for job in todo.values()]
        for key, ready in zip(todo, self.pool.imap(_in_time, work)):
            if ready is not None:
                self.ready[key] = ready
        done = sum(key in self.ready for key in todo)
        print(f"compiled {done} of {len(todo)} kernels in {time.monotonic() - begin:.0f} s")
        return {job for job, key in keys.items() if self.ready.get(key)}

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()


def _begin() -> None:
    """One core each; OpenMP's threads would not have survived the fork either."""
    torch.set_num_threads(1)


def _settle() -> None:
    """Calls what asks the GPU once and caches the answer in SGLang, so that no worker asks."""
    from sglang.kernels.jit.utils import is_arch_support_pdl
    from sglang.kernels.ops.moe import fused_moe_triton_kernels

    is_arch_support_pdl()
    fused_moe_triton_kernels.is_sm90_supported()

"""Compiles a tuner's candidates on every core, into Triton's cache on disk."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TypeVar

import torch

Job = TypeVar("Job")


def precompile(jobs: Sequence[Job], compile_one: Callable[[Job], None]) -> None:
    """For this machine's GPU. compile_one: launches a job's kernels with CPU tensors; it has to be
    importable, because other processes call it. What does not compile fails again when it is
    timed."""
    major, minor = torch.cuda.get_device_capability()
    workers = min(len(jobs), os.cpu_count() or 1)
    parts = [jobs[i::workers] for i in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(partial(_compile, compile_one, 10 * major + minor), parts))


def _compile(compile_one: Callable[[Job], None], arch: int, jobs: Sequence[Job]) -> None:
    from longcat_kernels.compile_only import compile_only

    torch.set_num_threads(1)
    with compile_only(arch):
        for job in jobs:
            compile_one(job)

"""DeepGEMM's kernels, compiled in parallel and without a GPU, into its cache on disk.

    Compilation(lite_gemms(8192), sms=132, folder=default_folder()).join()    # in process.py

DeepGEMM (package sgl-deep-gemm) compiles a kernel when it meets a GEMM that needs it, one after the
other, 2 to 20 s each. Which kernel a GEMM needs depends on its shape and on the number of
multiprocessors. On Hopper the source of a dense kernel contains tiles and no shape: one GPU serves
LongCat-Flash-Lite in block FP8 with 44 kernels.

A child process calls the real library for every shape. `no_gpu.c`, preloaded, stands in for CUDA,
so the library chooses tiles, generates source, compiles and stores as it does in a server, and
launches nothing. The child first asks with a pretended compiler which shapes need different
kernels. Then it forks one process per core, and each compiles one kernel with the real compiler.
What lies in the cache already is not compiled again.

A server finds these kernels by their names, which contain no property of the machine but its
compiler and the library's folder.

Owns: which kernels there are, and how they are compiled. Which GEMMs a server runs is
`sglang_longcat/host/deep_gemm.py`. This file imports no torch, so the child starts quickly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from longcat_kernels import lite

__all__ = ["Gemm", "default_folder", "dense_gemms", "lite_gemms"]

HOPPER_SMS = 132  # multiprocessors of H100 SXM, H200 and H800; an H20 has 78
TILE_ROWS = 16  # every tile of DeepGEMM has a multiple of so many rows


class Gemm(NamedTuple):
    """[rows, k] x [n, k]^T in block FP8, for each of `rows`. Grouped kinds have `groups` weights.

    "masked" reads rows of the same number of every group, and `rows` is how many it expects of one.
    "contiguous" reads groups one behind the other, each padded to a multiple of `alignment` rows.
    """

    kind: Literal["dense", "masked", "contiguous"]
    n: int
    k: int
    rows: Sequence[int]
    groups: int = 1
    alignment: int = 128


class Request(NamedTuple):
    """What the child process is asked for. `Compilation` has the meaning of the fields."""

    gemms: tuple[Gemm, ...]
    sms: int
    folder: Path
    workers: int


def dense_gemms(shapes: Sequence[tuple[int, int]], most: int) -> tuple[Gemm, ...]:
    """shapes: weights [n, k]. most: the largest number of rows. Rows that fill the same number of
    16-row tiles get the same kernel, so one of them is enough."""
    rows = range(1, most + 1, TILE_ROWS)
    return tuple(Gemm("dense", n, k, rows) for n, k in sorted(set(shapes)))


def lite_gemms(most: int) -> tuple[Gemm, ...]:
    """The dense GEMMs of LongCat-Flash-Lite and its draft on one GPU, of up to `most` tokens."""
    from longcat_kernels.small_linear.workloads import DRAFT, LITE

    shapes = [(shape.rows, shape.columns) for shape in (*LITE, *DRAFT)]
    expansion = lite.HEADS * (lite.NOPE + lite.VALUES), lite.KV_LORA  # of a cached prefix: kv_b
    return dense_gemms([*shapes, expansion], most)


def default_folder() -> Path:
    """Where SGLang lets DeepGEMM keep its kernels."""
    base = os.environ.get("SGLANG_CACHE_DIR") or "~/.cache/sglang"
    folder = os.environ.get("SGLANG_DG_CACHE_DIR") or f"{base}/deep_gemm"
    return Path(folder).expanduser()

"""Measures configurations of the small projections and writes the fastest into their table.

    python -m benchmarks.tune.linear            # a minute on 16 cores and one GPU
    python -m benchmarks.tune.linear --shapes gate_up q_b --candidates 100 --out FILE

Candidates compile in parallel into Triton's cache. Then they run in CUDA graphs, back to back with
programmatic dependent launch, over weights that are twice the L2 cache. The three fastest run
longer. An entry becomes null, which means "call the library", unless it beats the library
(`benchmarks.kernels.small_linear` says which one) by 2 %. Entries of shapes that are not tuned
stay.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.kernels.small_linear import library_call
from benchmarks.kernels.timing import PEAK_BYTES_PER_SECOND, gpu_name, graph_us, l2_bytes
from longcat_kernels.small_linear import configs, reference, workloads
from longcat_kernels.small_linear.configs import Config, Op

WORTH = 0.98  # of the library's time
MOST_SHARED = 110 << 10  # bytes of one program: two of them fit an SM (227 KiB)

Group = tuple[Op, int]  # shapes of one operation and number of columns share their kernels


def candidates(op: Op, columns: int, most: int) -> list[Config]:
    """Half of them are mma, which serves 1 to 32 tokens. Random, but the same ones each time."""
    draw = random.Random(0)
    gemv, mma = list(_gemv(op, columns)), list(_mma(op, columns))
    half = most // 2
    return [c for all_ in (gemv, mma) for c in draw.sample(all_, min(len(all_), half))]


def _gemv(op: Op, columns: int) -> Iterator[Config]:
    """Tiles that divide the columns. 4 to 48 KB are in flight at a time, in at most 96 registers of
    a thread; the sums take at most 64 more."""
    weights = 2 if op == "swiglu_linear" else 1
    for rows, block, ahead, warps in itertools.product(
        (1, 2, 4, 8), (512, 1024, 2048), (1, 2, 3, 4, 6), (2, 4, 8)
    ):
        tile, threads = weights * rows * block, 32 * warps
        fits = rows * block // threads >= 8 and tile // threads <= 64
        if columns % block or ahead * block > columns or not fits:
            continue
        if ahead * tile // 2 // threads <= 96 and 4 << 10 <= 2 * ahead * tile <= 48 << 10:
            yield Config("gemv", rows, block, ahead, 1, warps)


def _mma(op: Op, columns: int) -> Iterator[Config]:
    weights = 2 if op == "swiglu_linear" else 1
    for rows, block, ahead, stages, warps in itertools.product(
        (8, 16, 32), (64, 128, 256, 512), (0, 1, 2), (3, 4, 6), (2, 4)
    ):
        shared = 2 * block * (16 + weights * rows) * stages
        held = ahead * weights * rows * block // 2 // (32 * warps)  # registers a thread
        enough = 2 * block * weights * rows * (stages - 1) >= 12 << 10
        if columns % block == 0 and shared <= MOST_SHARED and held <= 64 and enough:
            yield Config("mma", rows, block, ahead, stages, warps)


def precompile(jobs: Sequence[tuple[Op, int, Config]], arch: int) -> None:
    """Compiles into Triton's cache on disk, on every core. What does not compile fails again when
    it is timed."""
    workers = min(len(jobs), os.cpu_count() or 1)
    parts = [(list(jobs[i::workers]), arch) for i in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_compile, parts))


def _compile(part: tuple[list[tuple[Op, int, Config]], int]) -> None:
    from longcat_kernels.compile_only import compile_only
    from longcat_kernels.small_linear import _triton

    jobs, arch = part
    torch.set_num_threads(1)
    with compile_only(arch):
        for op, columns, config in jobs:
            weight = torch.zeros(32, columns, dtype=torch.bfloat16)
            for tokens in (1,) if config.program == "gemv" else (2, configs.MOST_TOKENS):
                _triton.launch(op, weight[:tokens], weight, config)


class Timer:
    """Microseconds a call for one weight shape and number of tokens."""

    def __init__(
        self, shape: workloads.Shape, tokens: int, weights: Sequence[torch.Tensor]
    ) -> None:
        self.shape, self.weights = shape, weights
        self.x = workloads.make_inputs(tokens, 1, shape.columns, seed=0, device="cuda")[0]

    def of(self, config: Config, quick: bool) -> float:
        from triton.runtime.errors import OutOfResources

        from longcat_kernels.small_linear import _triton

        launch, op, x = _triton.launch, self.shape.op, self.x
        calls = [lambda weight=w: launch(op, x, weight, config) for w in self.weights]
        try:
            return graph_us(calls, quick)
        except OutOfResources:
            return float("inf")

    def of_library(self) -> float:
        return graph_us([library_call(self.shape, self.x, w) for w in self.weights], quick=False)

    def check(self, config: Config) -> None:
        """The winner also has to be right: within 2 ulp, or 2^-8 where sums cancel."""
        from longcat_kernels.small_linear import _triton

        plain = reference.linear if self.shape.op == "linear" else reference.swiglu_linear
        got = _triton.launch(self.shape.op, self.x, self.weights[0], config)
        torch.testing.assert_close(got, plain(self.x, self.weights[0]), rtol=2**-6, atol=2**-8)


def tune(shape: workloads.Shape, choice: Sequence[Config]) -> dict[str, Config | None]:
    """The entries of one shape. Each is printed when it is known."""
    size = 2 * shape.rows * shape.columns
    copies = max(4, 1 + 2 * l2_bytes() // size)
    weights = [
        workloads.make_inputs(1, shape.rows, shape.columns, seed=i, device="cuda")[1]
        for i in range(copies)
    ]
    entries: dict[str, Config | None] = {}
    for tokens in configs.TOKENS:
        timer = Timer(shape, tokens, weights)
        able = [c for c in choice if c.program == "mma" or tokens == 1]
        best, us = fastest(able, timer.of)
        timer.check(best)
        library = timer.of_library()
        entries[str(tokens)] = best if us < WORTH * library else None
        peak = PEAK_BYTES_PER_SECOND.get(gpu_name(), float("nan"))
        share = workloads.bytes_moved(tokens, shape) / us * 1e6 / peak
        name = f"{shape.name} {shape.rows}x{shape.columns}"
        print(
            f"{name:>20} T {tokens:2}: {us:6.2f} us, {share:5.1%} of peak; "
            f"library {library:6.2f} us ({library / us:.2f}x)  {'-'.join(map(str, best))}",
            flush=True,
        )
    return entries


def fastest(
    choice: Sequence[Config], time_of: Callable[[Config, bool], float]
) -> tuple[Config, float]:
    finalists = sorted(choice, key=lambda config: time_of(config, True))[:3]
    times = {config: time_of(config, False) for config in finalists}
    best = min(times, key=lambda config: times[config])
    return best, times[best]


def write(path: Path, tuned: dict[str, dict[str, Config | None]]) -> None:
    table = {**json.loads(configs.TABLE.read_text()), **tuned}
    blocks = []
    for key, entries in table.items():
        lines = ",\n".join(f'    "{t}": {json.dumps(config)}' for t, config in entries.items())
        blocks.append(f'  "{key}": {{\n{lines}\n  }}')
    path.write_text("{\n" + ",\n".join(blocks) + "\n}\n")
    print(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shapes = (*workloads.LITE, *workloads.LITE_TP2)
    names = sorted({shape.name for shape in shapes})
    parser.add_argument("--shapes", nargs="+", choices=names, default=names)
    parser.add_argument("--candidates", type=int, default=42, help="of each operation and width")
    parser.add_argument("--out", type=Path, default=configs.TABLE)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here, and the times are a GPU's.")
    shapes = tuple(shape for shape in shapes if shape.name in options.shapes)
    groups = {(s.op, s.columns): candidates(s.op, s.columns, options.candidates) for s in shapes}
    begin = time.perf_counter()
    major, minor = torch.cuda.get_device_capability()
    precompile(
        [(*group, c) for group, choice in groups.items() for c in choice], 10 * major + minor
    )
    print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)
    tuned = {
        configs.shape_key(s.op, s.rows, s.columns): tune(s, groups[s.op, s.columns]) for s in shapes
    }
    write(options.out, tuned)
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

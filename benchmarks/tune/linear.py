"""Measures configurations of the small projections and writes the fastest into their table.

    python -m benchmarks.tune.linear --ranks 1 2  # two minutes on 16 cores and one GPU
    python -m benchmarks.tune.linear --shapes gate_up q_b --candidates 100 --out FILE
    python -m benchmarks.tune.linear --fp8      # block-FP8 weights, against DeepGEMM

Candidates compile in parallel into Triton's cache. Then they run in CUDA graphs, back to back with
programmatic dependent launch, over weights that are twice the L2 cache. The three fastest run
longer. An entry becomes null, which means "call the library", unless it beats the library
(`benchmarks.kernels.small_linear` says which one) by 2 %. Entries of shapes that are not tuned
stay.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.kernels import fp8_linear
from benchmarks.kernels.small_linear import library_call
from benchmarks.kernels.timing import PEAK_BYTES_PER_SECOND, Call, gpu_name, graph_us, l2_bytes
from benchmarks.tune.compiling import precompile
from benchmarks.tune.table import write
from longcat_kernels.small_linear import configs, reference, workloads
from longcat_kernels.small_linear.configs import Config, Op

WORTH = 0.98  # of the library's time
MOST_SHARED = 110 << 10  # bytes of one program: two of them fit an SM (227 KiB)

Choice = TypeVar("Choice")  # a configuration of one of the tuners
Group = tuple[Op, int]  # shapes of one operation and number of columns share their kernels
RANKS = {
    1: (*workloads.LITE, *workloads.DRAFT, workloads.HEADS[1]),
    2: (*workloads.LITE_TP2, workloads.HEADS[2]),
    4: (*workloads.LITE_TP4, workloads.HEADS[4]),
    8: (*workloads.LITE_TP8, workloads.HEADS[8]),
}


def candidates(op: Op, columns: int, most: int, fp8: bool) -> list[Config]:
    """As many of each program. Random, but the same ones each time."""
    draw = random.Random(0)
    makers = (_fp8_gemv, _fp8_few, _fp8_mma) if fp8 else (_gemv, _mma)
    kinds = [list(make(op, columns)) for make in makers]
    share = most // len(kinds)
    return [c for all_ in kinds for c in draw.sample(all_, min(len(all_), share))]


def able(config: Config, tokens: int) -> bool:
    """Whether a configuration serves so many tokens."""
    return tokens <= {"gemv": 1, "few": configs.FEW, "mma": configs.MOST_TOKENS}[config.program]


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


def _fp8_gemv(op: Op, columns: int) -> Iterator[Config]:
    weights = 2 if op == "swiglu_linear" else 1
    for rows, block, ahead, warps in itertools.product(
        (1, 2, 4, 8, 16), (512, 1024, 2048), (1, 2, 3, 4, 6), (1, 2, 4, 8)
    ):
        tile, threads = weights * rows * block, 32 * warps
        fits = 16 <= tile // threads <= 64 and (columns % block == 0 or block <= 1024)
        if not fits or (ahead - 1) * block >= columns or block >= 2 * columns:
            continue
        if ahead * tile // 4 // threads <= 64 and 2 << 10 <= ahead * tile <= 32 << 10:
            yield Config("gemv", rows, block, ahead, 1, warps)


def _fp8_few(op: Op, columns: int) -> Iterator[Config]:
    """Warps have columns of their own, so that x lies where the weights lie."""
    weights = 2 if op == "swiglu_linear" else 1
    for rows, block, ahead, warps in itertools.product(
        (1, 2, 4, 8), (256, 512, 1024, 2048), (1, 2, 3, 4, 6), (1, 2, 4, 8)
    ):
        elements = weights * rows * block // (32 * warps)
        fits = 8 <= elements <= 32 and block >= 256 * warps and ahead * elements <= 128
        enough = ahead * weights * rows * block >= 2 << 10
        if fits and enough and (columns % block == 0 or block <= 1024) and ahead * block <= columns:
            yield Config("few", rows, block, ahead, 1, warps)


def _fp8_mma(op: Op, columns: int) -> Iterator[Config]:
    weights = 2 if op == "swiglu_linear" else 1
    for rows, block, ahead, stages, warps in itertools.product(
        (8, 16, 32, 64), (128, 256, 512), (0, 1, 2, 4), (2, 3, 4, 6), (1, 2, 4)
    ):
        shared = block * (2 * 16 + weights * rows) * stages
        held = ahead * weights * rows * 128 // 4 // (32 * warps)  # registers a thread
        enough = block * weights * rows * (stages - 1) >= 6 << 10
        fits = rows >= 8 * warps and (columns - ahead * 128) >= block
        if fits and shared <= MOST_SHARED and held <= 64 and enough:
            yield Config("mma", rows, block, ahead, stages, warps)


def _compile(fp8: bool, job: tuple[Op, int, Config]) -> None:
    from longcat_kernels.small_linear.launch import launch

    op, columns, config = job
    x = torch.zeros(configs.MOST_TOKENS, columns, dtype=torch.bfloat16)
    weight = torch.zeros(256, columns, dtype=torch.float8_e4m3fn if fp8 else x.dtype)
    scales = torch.zeros(2, columns // configs.BLOCK) if fp8 else None
    for tokens in {"gemv": (1,), "few": (2, 4), "mma": (2, 32)}[config.program]:
        launch(op, x[:tokens], weight, scales, config)


class Timer:
    """Microseconds a call for one weight shape and number of tokens."""

    def __init__(
        self, shape: workloads.Shape, tokens: int, weights: Sequence[workloads.Weight]
    ) -> None:
        self.shape, self.weights = shape, weights
        self.x = workloads.make_inputs(tokens, 1, shape.columns, seed=0, device="cuda")[0]

    def of(self, config: Config, quick: bool) -> float:
        from triton.runtime.errors import OutOfResources

        from longcat_kernels.small_linear.launch import launch

        op, x = self.shape.op, self.x
        calls = [functools.partial(launch, op, x, *w, config=config) for w in self.weights]
        try:
            return graph_us(calls, quick)
        except OutOfResources:
            return float("inf")

    def of_library(self) -> float:
        fp8 = self.weights[0][1] is not None
        call: Callable[..., Call] = fp8_linear.library_call if fp8 else library_call
        return graph_us([call(self.shape, self.x, *w) for w in self.weights], quick=False)

    def check(self, config: Config) -> None:
        """The winner also has to be right: within 2 ulp, or 2^-8 where sums cancel."""
        from longcat_kernels.small_linear.launch import launch

        got = launch(self.shape.op, self.x, *self.weights[0], config=config)
        wanted = reference.OPS[self.shape.op](self.x, *self.weights[0])
        torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-8)


def tune(
    shape: workloads.Shape, choice: Sequence[Config], fp8: bool, sizes: Sequence[int]
) -> dict[str, Config | None]:
    """The entries of one shape. Each is printed when it is known."""
    size = (1 if fp8 else 2) * shape.rows * shape.columns
    copies = max(2, 1 + 2 * l2_bytes() // size)
    weights = [
        workloads.make_weight(shape.rows, shape.columns, fp8=fp8, seed=i, device="cuda")
        for i in range(copies)
    ]
    entries: dict[str, Config | None] = {}
    for tokens in sizes:
        timer = Timer(shape, tokens, weights)
        best, us = fastest([c for c in choice if able(c, tokens)], timer.of)
        timer.check(best)
        library = timer.of_library()
        entries[str(tokens)] = best if us < WORTH * library else None
        peak = PEAK_BYTES_PER_SECOND.get(gpu_name(), float("nan"))
        share = workloads.bytes_moved(tokens, shape, fp8) / us * 1e6 / peak
        name = f"{shape.name} {shape.rows}x{shape.columns}"
        print(
            f"{name:>20} T {tokens:2}: {us:6.2f} us, {share:5.1%} of peak; "
            f"library {library:6.2f} us ({library / us:.2f}x)  {'-'.join(map(str, best))}",
            flush=True,
        )
    return entries


def fastest(
    choice: Sequence[Choice], time_of: Callable[[Choice, bool], float]
) -> tuple[Choice, float]:
    finalists = sorted(choice, key=lambda config: time_of(config, True))[:3]
    times = {config: time_of(config, False) for config in finalists}
    best = min(times, key=lambda config: times[config])
    return best, times[best]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = sorted({shape.name for shapes in RANKS.values() for shape in shapes})
    parser.add_argument("--shapes", nargs="+", choices=names, default=names)
    parser.add_argument("--fp8", action="store_true", help="block-FP8 weights")
    parser.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=list(RANKS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(configs.TOKENS))
    parser.add_argument("--programs", nargs="+", default=["gemv", "few", "mma"])
    parser.add_argument("--candidates", type=int, default=42, help="of each operation and width")
    parser.add_argument("--out", type=Path, default=configs.TABLE)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here, and the times are a GPU's.")
    fp8 = options.fp8
    chosen = dict.fromkeys(shape for ranks in options.ranks for shape in RANKS[ranks])
    shapes = [shape for shape in chosen if shape.name in options.shapes]
    groups = {
        (s.op, s.columns): [
            config
            for config in candidates(s.op, s.columns, options.candidates, fp8)
            if config.program in options.programs
        ]
        for s in shapes
    }
    begin = time.perf_counter()
    jobs = [(*group, c) for group, choice in groups.items() for c in choice]
    precompile(jobs, functools.partial(_compile, fp8))
    print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)
    tuned = {}
    for s in shapes:
        key = configs.shape_key(s.op, s.rows, s.columns, fp8)
        tuned[key] = tune(s, groups[s.op, s.columns], fp8, options.tokens)
        write(
            options.out, tuned, configs.TABLE
        )  # each time: a run that is cut off leaves what it has
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

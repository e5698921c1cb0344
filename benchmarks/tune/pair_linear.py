"""Measures configurations of the projections with quantised inputs and writes the fastest.

    python -m benchmarks.tune.pair_linear --ranks 1
    python -m benchmarks.tune.pair_linear --shapes down o --tokens 4 8 --out FILE

As `benchmarks.tune.linear`: block-FP8 weights that are twice the L2 cache, CUDA graphs, calls back
to back. An entry becomes null unless it beats, by 2 %, DeepGEMM (with SGLang's SwiGLU that
quantises) and our kernel for bf16 inputs as the table has it. Nothing but a launch of its own
quantises the input of `o`, so that launch counts for ours and DeepGEMM.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.kernels.fp8_linear import library_call
from benchmarks.kernels.timing import PEAK_BYTES_PER_SECOND, gpu_name, graph_us, l2_bytes
from benchmarks.tune.linear import RANKS, WORTH, fastest
from benchmarks.tune.table import write
from longcat_kernels.fp8_layout import FP8, quantise, widen
from longcat_kernels.small_linear import configs, reference, workloads
from longcat_kernels.small_linear.configs import PAIR_OF, Config, PairOp

SHARED = 220 << 10  # bytes of a program; Hopper has 227 KB
LEAST = 24 << 10  # bytes of weights on their way, of one program


def candidates(op: PairOp, columns: int, most: int = 1 << 30) -> list[Config]:
    """Random, but the same ones each time."""
    all_ = list(space(op, columns))
    return random.Random(0).sample(all_, min(len(all_), most))


def space(op: PairOp, columns: int) -> Iterator[Config]:
    weights, rows = (2, (128,)) if op == "pair_swiglu" else (1, (64, 128))
    for n, k, parts, stages, warps in itertools.product(
        rows, (128, 256, 512), (0, 1, 2), (3, 4, 5, 6, 8, 12, 16), (4, 8)
    ):
        tile = k * weights * n
        fits = stages * (tile + 32 * k) <= SHARED and (stages - 1) * tile >= LEAST
        if fits and columns % k == 0 and (warps == 4 or n == 128):
            yield Config("pair", n, k, parts, stages, warps)


def precompile(jobs: Sequence[tuple[PairOp, int, Config]], arch: int) -> None:
    """Into Triton's cache on disk, on every core."""
    workers = min(len(jobs), os.cpu_count() or 1)
    parts = [(list(jobs[i::workers]), arch) for i in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_part, parts))


def compile_part(part: tuple[list[tuple[PairOp, int, Config]], int]) -> None:
    from longcat_kernels.compile_only import compile_only
    from longcat_kernels.small_linear.launch import launch_pair

    jobs, arch = part
    torch.set_num_threads(1)
    with compile_only(arch):
        for (op, columns, config), tokens in itertools.product(jobs, (8, 16, 32)):
            pair = quantise(torch.zeros(tokens, columns))
            weight = torch.zeros(256, columns, dtype=FP8)
            launch_pair(op, pair, weight, torch.zeros(2, columns // configs.BLOCK), config)


class Timer:
    """Microseconds a call, for one weight shape and number of tokens."""

    def __init__(
        self, shape: workloads.Shape, tokens: int, weights: Sequence[workloads.Weight]
    ) -> None:
        self.shape, self.weights = shape, weights
        self.x = workloads.make_inputs(tokens, 1, shape.columns, seed=0, device="cuda")[0]
        self.pair = quantise(self.x)

    def of(self, config: Config, quick: bool) -> float:
        from triton.runtime.errors import OutOfResources

        try:
            return graph_us([self._call(config, *weight) for weight in self.weights], quick)
        except OutOfResources:
            return float("inf")

    def _call(
        self, config: Config, weight: torch.Tensor, scales: torch.Tensor | None
    ) -> Callable[[], object]:
        from longcat_kernels.small_linear.launch import launch_pair

        assert scales is not None
        op = PAIR_OF[self.shape.op]
        return lambda: launch_pair(op, self.pair, weight, scales, config)

    def of_others(self) -> dict[str, float]:
        """DeepGEMM, the launch that quantises x, and our kernel for bf16 if the table has it."""
        from longcat_kernels.small_linear.launch import launch
        from sglang_longcat.layers.fp8_inputs import quantise as launch_quantise

        shape, x = self.shape, self.x
        calls = [library_call(shape, x, weight, scales) for weight, scales in self._scaled()]
        times = {"library": graph_us(calls, quick=False), "quantise": 0.0, "bf16": float("inf")}
        if shape.name == "o":
            times["quantise"] = graph_us([lambda: launch_quantise(x)], quick=False)
        config = configs.find(shape.op, shape.rows, shape.columns, len(x), fp8=True)
        if config is not None:
            ours = [functools.partial(launch, shape.op, x, *w, config) for w in self.weights]
            times["bf16"] = graph_us(ours, quick=False)
        return times

    def _scaled(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for weight, scales in self.weights:
            assert scales is not None
            yield weight, scales

    def check(self, config: Config) -> None:
        """The winner also has to be right: 2 ulp of bf16, or two steps of e4m3 for SwiGLU."""
        from longcat_kernels.small_linear.launch import launch_pair

        weight, scales = next(self._scaled())
        got = launch_pair(PAIR_OF[self.shape.op], self.pair, weight, scales, config)
        if self.shape.op == "linear":
            wanted = reference.pair_linear(self.pair, weight, scales)
            torch.testing.assert_close(got[0], wanted, rtol=2**-6, atol=2**-8)
            return
        assert got[1] is not None
        wide = widen(reference.pair_swiglu(self.pair, weight, scales))
        torch.testing.assert_close(widen((got[0], got[1])), wide, rtol=2**-2, atol=2**-5)


def tune(
    shape: workloads.Shape, choice: Sequence[Config], sizes: Sequence[int]
) -> dict[str, Config | None]:
    """The entries of one shape. Each is printed when it is known."""
    copies = max(2, 1 + 2 * l2_bytes() // (shape.rows * shape.columns))
    weights = [
        workloads.make_weight(shape.rows, shape.columns, fp8=True, seed=i, device="cuda")
        for i in range(copies)
    ]
    entries: dict[str, Config | None] = {}
    for tokens in sizes:
        timer = Timer(shape, tokens, weights)
        best, us = fastest(choice, timer.of)
        timer.check(best)
        others = timer.of_others()
        library, bf16 = others["library"] + others["quantise"], others["bf16"]
        entries[str(tokens)] = (
            best if us + others["quantise"] < WORTH * min(library, bf16) else None
        )
        peak = PEAK_BYTES_PER_SECOND.get(gpu_name(), float("nan"))
        share = workloads.bytes_moved(tokens, shape, True) / us * 1e6 / peak
        print(
            f"{shape.name:>8} {shape.rows}x{shape.columns} T {tokens:2}: {us:6.2f} us, "
            f"{share:5.1%} of peak; DeepGEMM {others['library']:6.2f}, bf16 inputs {bf16:6.2f}, "
            f"quantise {others['quantise']:5.2f}  {'-'.join(map(str, best))}",
            flush=True,
        )
    return entries


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shapes = {r: [s for s in RANKS[r] if s.name != "head"] for r in RANKS}  # its inputs are bf16
    names = sorted({shape.name for ranks in shapes.values() for shape in ranks})
    parser.add_argument("--shapes", nargs="+", choices=names, default=names)
    parser.add_argument("--ranks", nargs="+", type=int, choices=RANKS, default=list(RANKS))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(configs.TOKENS))
    parser.add_argument("--candidates", type=int, default=42, help="of each operation and width")
    parser.add_argument("--out", type=Path, default=configs.TABLE)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here, and the times are a GPU's.")
    chosen = dict.fromkeys(s for r in options.ranks for s in shapes[r] if s.name in options.shapes)
    most = options.candidates
    groups = {(s.op, s.columns): candidates(PAIR_OF[s.op], s.columns, most) for s in chosen}
    begin = time.perf_counter()
    major, minor = torch.cuda.get_device_capability()
    jobs = [(PAIR_OF[op], columns, c) for (op, columns), all_ in groups.items() for c in all_]
    precompile(jobs, 10 * major + minor)
    print(f"compiled {len(jobs)} in {time.perf_counter() - begin:.0f} s", flush=True)
    tuned = {}
    for s in chosen:
        key = configs.shape_key(PAIR_OF[s.op], s.rows, s.columns, fp8=True)
        tuned[key] = tune(s, groups[s.op, s.columns], options.tokens)
        write(options.out, tuned, configs.TABLE)  # a run that is cut off leaves what it has
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

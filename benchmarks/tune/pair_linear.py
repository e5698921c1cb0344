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
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.kernels.fp8_linear import library_call
from benchmarks.kernels.timing import PEAK_BYTES_PER_SECOND, gpu_name, graph_us, l2_bytes
from benchmarks.tune.compiling import precompile
from benchmarks.tune.linear import RANKS, WORTH, fastest
from benchmarks.tune.table import write
from longcat_kernels.fp8_layout import FP8, quantise, widen
from longcat_kernels.small_linear import configs, reference, workloads
from longcat_kernels.small_linear.configs import PAIR_OF, Config, PairOp

Scaled = tuple[torch.Tensor, torch.Tensor]  # a block-FP8 weight and its scales
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


def _compile(job: tuple[PairOp, int, Config]) -> None:
    from longcat_kernels.small_linear.launch import launch_pair

    op, columns, config = job
    weight, scales = torch.zeros(256, columns, dtype=FP8), torch.zeros(2, columns // configs.BLOCK)
    for tokens in (8, 16, 32):
        launch_pair(op, quantise(torch.zeros(tokens, columns)), weight, scales, config)


class Timer:
    """Microseconds a call, for one weight shape and number of tokens."""

    def __init__(self, shape: workloads.Shape, tokens: int, weights: Sequence[Scaled]) -> None:
        self.shape, self.weights = shape, weights
        self.x = workloads.make_inputs(tokens, 1, shape.columns, seed=0, device="cuda")[0]
        self.pair = quantise(self.x)

    def of(self, config: Config, quick: bool) -> float:
        from triton.runtime.errors import OutOfResources

        from longcat_kernels.small_linear.launch import launch_pair

        op, pair = PAIR_OF[self.shape.op], self.pair
        calls = [functools.partial(launch_pair, op, pair, *w, config) for w in self.weights]
        try:
            return graph_us(calls, quick)
        except OutOfResources:
            return float("inf")

    def of_others(self) -> dict[str, float]:
        """DeepGEMM, the launch that quantises x, and our kernel for bf16 if the table has it."""
        from longcat_kernels.small_linear.launch import launch
        from sglang_longcat.layers.fp8_inputs import quantise as launch_quantise

        shape, x = self.shape, self.x
        calls = [library_call(shape, x, *w) for w in self.weights]
        times = {"library": graph_us(calls, quick=False), "quantise": 0.0, "bf16": float("inf")}
        if shape.name == "o":
            times["quantise"] = graph_us([lambda: launch_quantise(x)], quick=False)
        config = configs.find(shape.op, shape.rows, shape.columns, len(x), fp8=True)
        if config is not None:
            ours = [functools.partial(launch, shape.op, x, *w, config) for w in self.weights]
            times["bf16"] = graph_us(ours, quick=False)
        return times

    def check(self, config: Config) -> None:
        """The winner also has to be right: 2 ulp of bf16, or two steps of e4m3 for SwiGLU."""
        from longcat_kernels.small_linear.launch import launch_pair

        got = launch_pair(PAIR_OF[self.shape.op], self.pair, *self.weights[0], config)
        if self.shape.op == "linear":
            wanted = reference.pair_linear(self.pair, *self.weights[0])
            torch.testing.assert_close(got[0], wanted, rtol=2**-6, atol=2**-8)
            return
        assert got[1] is not None
        wide = widen(reference.pair_swiglu(self.pair, *self.weights[0]))
        torch.testing.assert_close(widen((got[0], got[1])), wide, rtol=2**-2, atol=2**-5)


def tune(
    shape: workloads.Shape, choice: Sequence[Config], sizes: Sequence[int]
) -> dict[str, Config | None]:
    """The entries of one shape. Each is printed when it is known."""
    copies = max(2, 1 + 2 * l2_bytes() // (shape.rows * shape.columns))
    weights = [
        workloads.make_fp8_inputs(1, shape.rows, shape.columns, seed=i, device="cuda")[1:]
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
    jobs = [(PAIR_OF[op], columns, c) for (op, columns), all_ in groups.items() for c in all_]
    precompile(jobs, _compile)
    print(f"compiled {len(jobs)} in {time.perf_counter() - begin:.0f} s", flush=True)
    tuned = {}
    for s in chosen:
        key = configs.shape_key(PAIR_OF[s.op], s.rows, s.columns, fp8=True)
        tuned[key] = tune(s, groups[s.op, s.columns], options.tokens)
        write(options.out, tuned, configs.TABLE)  # a run that is cut off leaves what it has
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

"""Measures configurations of the projections from 4-bit weights and writes the fastest.

    python -m benchmarks.tune.packed_linear --ranks 1
    python -m benchmarks.tune.packed_linear --shapes down o --tokens 1 --out FILE

As `benchmarks.tune.linear`: weights that are twice the L2 cache, CUDA graphs, calls back to back.
An entry becomes null unless it beats, by 2 %, SGLang's Marlin, for SwiGLU with the kernel of the
activation behind it. SGLang's Marlin is built when it is first called, which takes minutes.
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

from benchmarks.kernels.packed_linear import library_call
from benchmarks.kernels.timing import PEAK_BYTES_PER_SECOND, gpu_name, graph_us, l2_bytes
from benchmarks.tune.compiling import precompile
from benchmarks.tune.linear import WORTH, fastest
from benchmarks.tune.table import write
from longcat_kernels.packed_linear import configs, reference, workloads
from longcat_kernels.packed_linear.configs import Config
from longcat_kernels.packed_linear.marlin import Packed
from longcat_kernels.small_linear.configs import Op
from longcat_kernels.small_linear.workloads import Shape

MOST_TILES = 12  # of a thread: the loop is unrolled, and 12 tiles of 4 tokens compile for 12 s
MOST_REGISTERS = 128  # of a thread, for words and scales on their way


def candidates(op: Op, columns: int, most: int = 1 << 30) -> list[Config]:
    """Random, but the same ones each time."""
    all_ = list(space(op, columns))
    return random.Random(0).sample(all_, min(len(all_), most))


def space(op: Op, columns: int) -> Iterator[Config]:
    """At most a quarter of the pieces is beyond the columns. A program has 2 KB or more on their
    way, of 33 KB that an SM needs."""
    weights = 2 if op == "swiglu_linear" else 1
    for rows, span, ahead, warps in itertools.product(
        (8, 16, 32, 64), (1, 2, 4, 8), (1, 2, 3, 4, 6, 8), (1, 2, 4, 8)
    ):
        block = 1024 * warps * span // rows
        pieces = -(-columns // block)
        held = weights * ahead * 4 * (span + 1)
        enough = weights * ahead * rows * block // 2 >= 2 << 10
        whole = block <= columns and pieces * block * 3 <= columns * 4 and ahead <= pieces
        small = held <= MOST_REGISTERS and pieces * span <= MOST_TILES
        if whole and small and enough:
            yield Config(rows, block, ahead, warps)


def _compile(sizes: Sequence[int], job: tuple[Op, int, Config]) -> None:
    from longcat_kernels.packed_linear.launch import launch

    op, columns, config = job
    words = torch.zeros(columns // 16, 256, dtype=torch.int32)
    scales = torch.zeros(columns // workloads.GROUP, 128, dtype=torch.bfloat16)
    for tokens in sizes:
        x = torch.zeros(tokens, columns, dtype=torch.bfloat16)
        launch(op, x, Packed(words, scales), config)


class Timer:
    """Microseconds a call, for one weight shape and number of tokens."""

    def __init__(self, shape: Shape, tokens: int, weights: Sequence[Packed]) -> None:
        self.shape, self.weights = shape, weights
        self.x = workloads.make_x(tokens, shape.columns, seed=0, device="cuda")

    def of(self, config: Config, quick: bool) -> float:
        from longcat_kernels.packed_linear.launch import launch

        op, x = self.shape.op, self.x
        return graph_us([functools.partial(launch, op, x, w, config) for w in self.weights], quick)

    def of_library(self) -> float:
        return graph_us([library_call(self.shape, self.x, w) for w in self.weights], quick=False)

    def check(self, config: Config) -> None:
        """The winner also has to be right: within 2 ulp, or 2^-8 where sums cancel."""
        from longcat_kernels.packed_linear.launch import launch

        got = launch(self.shape.op, self.x, self.weights[0], config)
        wanted = reference.OPS[self.shape.op](self.x, self.weights[0])
        torch.testing.assert_close(got, wanted, rtol=2**-6, atol=2**-8)


def tune(shape: Shape, choice: Sequence[Config], sizes: Sequence[int]) -> dict[str, Config | None]:
    """The entries of one shape. Each is printed when it is known."""
    copies = max(2, 1 + 4 * l2_bytes() // (shape.rows * shape.columns))
    weights = [
        workloads.make_weight(shape.rows, shape.columns, seed=i, device="cuda")
        for i in range(copies)
    ]
    entries: dict[str, Config | None] = {}
    for tokens in sizes:
        timer = Timer(shape, tokens, weights)
        best, us = fastest(choice, timer.of)
        timer.check(best)
        library = timer.of_library()
        entries[str(tokens)] = best if us < WORTH * library else None
        peak = PEAK_BYTES_PER_SECOND.get(gpu_name(), float("nan"))
        share = workloads.bytes_moved(tokens, shape) / us * 1e6 / peak
        print(
            f"{shape.name:>8} {shape.rows}x{shape.columns} T {tokens}: {us:6.2f} us, "
            f"{share:5.1%} of peak; Marlin {library:6.2f} us ({library / us:.2f}x)  "
            f"{'-'.join(map(str, best))}",
            flush=True,
        )
    return entries


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = sorted({shape.name for shapes in workloads.RANKS.values() for shape in shapes})
    parser.add_argument("--shapes", nargs="+", choices=names, default=names)
    parser.add_argument("--ranks", nargs="+", type=int, choices=workloads.RANKS, default=[1])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(configs.TOKENS))
    parser.add_argument("--candidates", type=int, default=24, help="of each operation and width")
    parser.add_argument("--out", type=Path, default=configs.TABLE)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here, and the times are a GPU's.")
    chosen = dict.fromkeys(
        s for r in options.ranks for s in workloads.RANKS[r] if s.name in options.shapes
    )
    groups = {(s.op, s.columns): candidates(s.op, s.columns, options.candidates) for s in chosen}
    begin = time.perf_counter()
    jobs = [(*group, config) for group, choice in groups.items() for config in choice]
    precompile(jobs, functools.partial(_compile, options.tokens))
    print(f"compiled {len(jobs)} in {time.perf_counter() - begin:.0f} s", flush=True)
    tuned = {}
    for s in chosen:
        key = configs.shape_key(s.op, s.rows, s.columns, workloads.GROUP)
        tuned[key] = tune(s, groups[s.op, s.columns], options.tokens)
        write(options.out, tuned, configs.TABLE)  # a run that is cut off leaves what it has
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

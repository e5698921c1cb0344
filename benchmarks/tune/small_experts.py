"""Measures configurations of the mixture of few tokens and writes the fastest into their table.

    python -m benchmarks.tune.small_experts          # two minutes on 16 cores and one GPU
    python -m benchmarks.tune.small_experts --shapes "tp1 fp8" --tokens 1 4 --out FILE

Candidates compile in parallel into Triton's cache. Then each launch is timed by itself, in CUDA
graphs with another routing in every call. The fastest of both form pairs, which run longer and
must be right. An entry becomes null, which means "SGLang's grouped GEMM", unless it beats that by
2 %.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.kernels.small_experts import SHAPES, grouped, weights_of
from benchmarks.kernels.timing import graph_us
from benchmarks.tune.compiling import precompile
from benchmarks.tune.table import write
from longcat_kernels.small_experts import configs, launch, reference, workloads
from longcat_kernels.small_experts.configs import Config

WORTH = 0.98  # of the grouped GEMM's time
ROUTINGS = 10
FINALISTS = 3  # of each launch

Job = tuple[str, Config]  # a shape's name


def candidates(fp8: bool, columns: int) -> list[Config]:
    """Each has a first launch and a second; the lists are zipped, because both are timed alone."""
    up, down = list(_up(fp8)), list(_down(fp8, columns))
    count = max(len(up), len(down))
    return [Config(*up[i % len(up)], *down[i % len(down)]) for i in range(count)]


def _up(fp8: bool) -> Iterator[tuple[int, int, int, int]]:
    """Two tiles (gate, up) of 2 to 16 KB ahead, at most 64 registers of a thread."""
    width = 1 if fp8 else 2
    for rows, block, ahead, warps in itertools.product(
        (1, 2, 4, 8), (512, 1024), (1, 2, 3, 6), (1, 2, 4, 8)
    ):
        elements = rows * block // (32 * warps)
        held = 2 * ahead * elements * width // 4
        if 8 <= elements <= 32 and ahead * block <= 3072 and 8 <= held <= 64:
            yield rows, block, ahead, warps


def _down(fp8: bool, columns: int) -> Iterator[tuple[int, int, int]]:
    width = 1 if fp8 else 2
    for rows, ahead, warps in itertools.product((1, 2, 4, 8, 16), (4, 6, 8, 12), (1, 2, 4, 8)):
        elements = rows * columns // (32 * warps)
        if 8 <= elements <= 64 and ahead * elements * width // 4 <= 128:
            yield rows, ahead, warps


def _compile(job: Job) -> None:
    name, config = job
    shape, fp8 = SHAPES[name]
    one = workloads.make_weights(shape._replace(experts=1), fp8=fp8, seed=0, device="cpu")
    x, ids, factors, identity = workloads.make_inputs(
        shape._replace(experts=8), 2, seed=0, device="cpu"
    )
    launch.experts(x, ids, factors, one, identity, config)


class Timer:
    """Microseconds of one shape and number of tokens."""

    def __init__(self, name: str, tokens: int) -> None:
        self.weights = weights_of(name, "cuda")
        self.fp8 = SHAPES[name][1]
        self.inputs = [
            workloads.make_inputs(SHAPES[name][0], tokens, seed=seed, device="cuda")
            for seed in range(ROUTINGS)
        ]

    def up(self, config: Config) -> float:
        shared = launch.shared_options(self.inputs[0].x, self.inputs[0].ids, self.weights)
        calls = [
            functools.partial(launch.gate_up, i.x, i.ids, self.weights, config, shared)
            for i in self.inputs
        ]
        return _time(calls)

    def down(self, config: Config) -> float:
        shared = launch.shared_options(self.inputs[0].x, self.inputs[0].ids, self.weights)
        width, down = self.weights.down.shape[2], launch.down
        calls: list[Callable[[], object]] = []
        for i in self.inputs:
            hidden = torch.randn(*i.ids.shape, width, device="cuda").bfloat16()
            mixture = hidden, i.ids, i.factors, self.weights, (i.x, i.identity), config, shared
            calls.append(functools.partial(down, *mixture))
        return _time(calls)

    def both(self, config: Config) -> float:
        calls = [
            functools.partial(
                launch.experts, i.x, i.ids, i.factors, self.weights, i.identity, config
            )
            for i in self.inputs
        ]
        return _time(calls, quick=False)

    def of_grouped(self) -> float:
        calls = [
            functools.partial(grouped, i.x, i.ids, i.factors, self.weights, i.identity)
            for i in self.inputs
        ]
        return graph_us(calls, quick=False)

    def check(self, config: Config) -> None:
        i = self.inputs[0]
        got = launch.experts(i.x, i.ids, i.factors, self.weights, i.identity, config)
        wanted = reference.experts(i.x, i.ids, i.factors, self.weights, i.identity)
        torch.testing.assert_close(got, wanted, rtol=2**-5, atol=2**-5)


def _time(calls: Sequence[Callable[[], object]], quick: bool = True) -> float:
    from triton.runtime.errors import OutOfResources

    try:
        return graph_us(calls, quick)
    except OutOfResources:
        return float("inf")


def tune(name: str, tokens: int, choice: Sequence[Config]) -> Config | None:
    timer = Timer(name, tokens)
    ups = _fastest({c[:4]: c for c in choice}.values(), timer.up)
    downs = _fastest({c[4:]: c for c in choice}.values(), timer.down)
    pairs = [Config(*u[:4], *d[4:]) for u, d in itertools.product(ups, downs)]
    times = {config: timer.both(config) for config in pairs}
    best = min(times, key=lambda config: times[config])
    timer.check(best)
    us, library = times[best], timer.of_grouped()
    size = workloads.bytes_moved(SHAPES[name][0], tokens, fp8=timer.fp8)
    print(
        f"{name:>9} T {tokens:2}: {us:7.2f} us ({timer.up(best):.2f} + {timer.down(best):.2f}), "
        f"{size / us * 1e-6:.2f} TB/s; grouped {library:7.2f} us ({library / us:.2f}x)  "
        f"{'-'.join(map(str, best))}",
        flush=True,
    )
    return best if us < WORTH * library else None


def _fastest(choice: Iterable[Config], time_of: Callable[[Config], float]) -> list[Config]:
    return sorted(choice, key=time_of)[:FINALISTS]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(configs.TOKENS))
    parser.add_argument("--compile-only", action="store_true", help="fill Triton's cache, then end")
    parser.add_argument("--out", type=Path, default=configs.TABLE)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here, and the times are a GPU's.")
    begin = time.perf_counter()
    choice = {name: candidates(SHAPES[name][1], SHAPES[name][0].columns) for name in options.shapes}
    precompile([(name, c) for name, cs in choice.items() for c in cs], _compile)
    print(f"compiled in {time.perf_counter() - begin:.0f} s", flush=True)
    if options.compile_only:
        return
    tuned: dict[str, dict[str, Config | None]] = {}
    for name in options.shapes:
        shape, fp8 = SHAPES[name]
        entries = tuned.setdefault(configs.key(shape.columns, shape.hidden, fp8), {})
        for tokens in options.tokens:
            entries[str(tokens)] = tune(name, tokens, choice[name])
            write(
                options.out, tuned, configs.TABLE
            )  # each time: a run that is cut off leaves what it has
    print(f"{time.perf_counter() - begin:.0f} s in all")


if __name__ == "__main__":
    main()

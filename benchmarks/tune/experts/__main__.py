"""Measures tile sizes of SGLang's expert GEMMs on the GPU at hand and writes SGLang's files.

    python -m benchmarks.tune.experts --shape tp1 --budget-s 150 --out DIR --csv DIR

Each shape gets `budget-s` seconds: kernels compile in parallel processes first, then the real ones
are timed. When the time is up, the best of what was measured so far is written. By default files
go to `sglang_longcat/expert_configs`, tables to the benchmarks' results. Owns the sequence of steps
and the files; the other modules of this package have the steps. Needs a Hopper GPU with nothing
else on it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import RESULTS, ROOT
from benchmarks.tune.experts.compile import Compiler
from benchmarks.tune.experts.launch import SHAPES, Shape
from benchmarks.tune.experts.search import Job, Pair, Search
from benchmarks.tune.experts.space import FP8_BLOCK, TOKENS, Variant, tile_of
from benchmarks.tune.experts.timing import Bench
from longcat_kernels.lite import HIDDEN, TOP_K

_COMPILING = 0.6  # of the time, at most
ALIKE = 0.02  # relative; tiles differ in the order of fp32 sums, and bf16 rounds after each GEMM


def main(argv: Sequence[str] | None = None) -> None:
    options = _parse(argv)
    for name in options.shape:
        _tune(SHAPES[name], options)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tp1"])
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--fp8", action="store_true", help="block-FP8 weights and activations")
    parser.add_argument("--no-tma", action="store_true", help="leave out loads by descriptor")
    parser.add_argument("--budget-s", type=float, default=150, help="seconds for each shape")
    parser.add_argument("--workers", type=int, default=cores, help="processes that compile")
    parser.add_argument("--out", type=Path, default=ROOT / "sglang_longcat" / "expert_configs")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here; run it on the machine that will serve.")
    return options


def _tune(shape: Shape, options: argparse.Namespace) -> None:
    begin = time.monotonic()

    def left() -> float:
        return begin + options.budget_s - time.monotonic()

    compiler = Compiler(shape, fp8=options.fp8, workers=options.workers)
    try:
        # Only now may this process use the GPU: the compiler's processes are forks of it.
        bench = Bench(shape, fp8=options.fp8)
        search = Search(
            tokens=sorted(options.tokens),
            defaults={m: sglang_choice(shape, m, fp8=options.fp8) for m in options.tokens},
            compile_all=lambda jobs: _compile(compiler, jobs, _COMPILING * left()),
            measure=bench.measure,
            in_time=lambda: left() > 0,
            fp8=options.fp8,
            tma=not options.no_tma,
        )
        search.run()
        chosen = {m: _checked(bench, m, search) for m in search.tokens}
        _write(search, chosen, bench, options)
    finally:
        compiler.close()
    print(f"{shape.name}: {len(search.times)} measured in {time.monotonic() - begin:.0f} s")


def _compile(compiler: Compiler, jobs: Sequence[Job], seconds: float) -> set[Job]:
    ready = compiler.compile_all(jobs, max(0.0, seconds))
    print(f"{len(ready)} of {len(jobs)} candidates fit and are ready to measure", flush=True)
    return ready


def sglang_choice(shape: Shape, tokens: int, *, fp8: bool) -> Pair:
    """What SGLang takes without our files: its own for this GPU, or its defaults."""
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config as upstream

    plain = SimpleNamespace(enable_deterministic_inference=False)
    upstream.get_exec = lambda: SimpleNamespace(deterministic=plain)
    up, (down, _) = upstream.try_get_optimal_moe_config(
        (shape.experts, 2 * shape.width, HIDDEN),
        (shape.experts, HIDDEN, shape.width),
        TOP_K,
        "fp8_w8a8" if fp8 else None,
        tokens,
        block_shape=[FP8_BLOCK, FP8_BLOCK] if fp8 else None,
        return_down_config=True,
    )
    down = down or {**up, "USE_TMA": False}
    sorted_rows = bool(down.get("USE_TMA"))
    first = Variant("up", tile_of(up), bool(up.get("USE_TMA")), by_expert=sorted_rows)
    return first, Variant("down", tile_of(down), sorted_rows)


def _checked(bench: Bench, tokens: int, search: Search) -> Pair:
    """The best pair whose output is that of SGLang's choice."""
    best, default = search.best(tokens), search.defaults[tokens]
    distance = bench.differs(tokens, best, default)
    if distance <= ALIKE:
        return best
    print(f"  {tokens} {best}: off by {distance:.3g} of the default's output; keeping the default")
    return default


def _write(
    search: Search, chosen: dict[int, Pair], bench: Bench, options: argparse.Namespace
) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    for index in (0, 1):
        path = options.out / file_name(bench.shape, options.fp8, down=bool(index))
        configs = {str(m): _config(pair[index]) for m, pair in chosen.items()}
        path.write_text(json.dumps(configs, indent=4) + "\n")
        print(f"wrote {path}")
    rows = [_row(search, bench, m, pair) for m, pair in chosen.items()]
    name = f"experts_{bench.shape.name}{'_fp8' if options.fp8 else ''}"
    folder = options.csv
    if folder == RESULTS:
        folder /= torch.cuda.get_device_name().lower().split()[1]
    table(folder / f"{name}.csv", rows)
    table(folder / f"{name}_all.csv", [_measured(job, us) for job, us in search.times.items()])


def _config(variant: Variant) -> dict[str, Any]:
    return {**variant.tile.config(), **({"USE_TMA": True} if variant.tma else {})}


def file_name(shape: Shape, fp8: bool, *, down: bool) -> str:
    from sglang.srt.layers.moe.moe_runner.triton_utils import get_config_file_name

    block = [FP8_BLOCK, FP8_BLOCK] if fp8 else None
    dtype = "fp8_w8a8" if fp8 else None
    return str(get_config_file_name(shape.experts, shape.width, dtype, block, down_moe=down))


def _row(search: Search, bench: Bench, tokens: int, pair: Pair) -> dict[str, object]:
    default = search.us(tokens, search.defaults[tokens])
    us = search.us(tokens, pair)
    row = {
        "shape": bench.shape.name,
        "tokens": tokens,
        "default_us": f"{default:.2f}",
        "us": f"{us:.2f}",
        "ratio": f"{default / us:.3f}",
        "gb_per_s": f"{bench.weight_bytes(tokens) / us * 1e-3:.0f}",
        "up": _short(pair[0]),
        "down": _short(pair[1]),
        "gpu": torch.cuda.get_device_name(),
    }
    print("  ".join(str(value) for value in row.values()), flush=True)
    return row


def _measured(job: Job, us: float) -> dict[str, object]:
    tokens, variant = job
    return {"tokens": tokens, "op": variant.op, "tile": _short(variant), "us": f"{us:.2f}"}


def _short(variant: Variant) -> str:
    kinds = (" tma" if variant.tma else "") + (" sorted" if variant.by_expert else "")
    return f"{variant.tile}{kinds}"


def table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()

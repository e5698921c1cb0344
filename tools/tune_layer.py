"""Measures tiles inside whole layers on the GPU at hand, and writes the fastest into both tables.

    python tools/tune_layer.py --budget-s 240
    python tools/tune_layer.py --sizes 8x1 1x4 --out-experts DIR --out-linear FILE --csv DIR

Beside the dense branch, on streams of other priorities, other tiles of the expert GEMMs and of the
projections are fastest than alone, where tools/tune_experts.py and tune_small_linear.py measure
them: run these first. Captures three layers as the engine launches them, per size: 8x1 is a decode
step of 8 requests, 1x4 the window of 4 tokens that verifies one request's drafts. Starts from what
is shipped, and keeps it wherever nothing is 0.3 % faster. Attention is measured with the rest, and
decided elsewhere. Owns the flow and the files; see layer_{space,search,tables,inputs,attention,
step,timing,check}.py. Needs a Hopper GPU with nothing else on it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "kernels" / "benchmarks"))

from timing import commit, gpu_name  # noqa: E402
from tune_small_linear import precompile, write  # noqa: E402

from expert_compile import Compiler  # noqa: E402
from expert_search import Job  # noqa: E402
from expert_timing import Bench  # noqa: E402
from layer_check import checked  # noqa: E402
from layer_inputs import LAYERS, SHAPE, Weights, make_weights  # noqa: E402
from layer_search import Search  # noqa: E402
from layer_space import CONFIGS, EXPERTS, PROJECTIONS, SIZES, Choices, Size, axes, jobs  # noqa: E402
from layer_tables import Table, csv_rows, shipped, with_configs, with_tiles  # noqa: E402
from layer_timing import Timer  # noqa: E402
from longcat_kernels.small_linear import configs  # noqa: E402
from tune_experts import file_name, table  # noqa: E402

SHIPPED = ROOT / "sglang_longcat" / "expert_configs"
RESULTS = ROOT / "kernels" / "benchmarks" / "results"
_COMPILING = 0.4  # of the time, at most


@dataclass
class Tuned:
    """What is found and measured so far."""

    experts: dict[str, Table]  # as shipped
    found: dict[Size, Choices] = field(default_factory=dict)
    rows: list[dict[str, object]] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> None:
    options = _parse(argv)
    end = time.monotonic() + options.budget_s
    sizes = [SIZES[name] for name in options.sizes]
    ready = _compile(sizes, options)
    tuned = Tuned(read_experts(SHIPPED))
    _compile_projections()
    weights, bench = [make_weights(i) for i in range(LAYERS)], Bench(SHAPE, fp8=False)
    for i, size in enumerate(sizes):
        share = (end - time.monotonic()) / (len(sizes) - i)
        _tune(size, weights, bench, ready, time.monotonic() + share, tuned, options)
        _write(tuned, options)  # each time: a run that is cut off leaves what it has


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--budget-s", type=float, default=240, help="seconds for all sizes")
    parser.add_argument("--workers", type=int, default=cores, help="processes that compile")
    parser.add_argument(
        "--attention",
        choices=("flashinfer", "fa3"),
        default="flashinfer",
        help="the server's backend, for steps that ours does not take",
    )
    parser.add_argument("--out-experts", type=Path, default=SHIPPED, help="folder")
    parser.add_argument("--out-linear", type=Path, default=configs.TABLE, help="file")
    parser.add_argument("--csv", type=Path, help="folder (default: the benchmarks' results/<gpu>)")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU here; run it on the machine that will serve.")
    return options


def _compile(sizes: Sequence[Size], options: argparse.Namespace) -> set[Job]:
    compiler = Compiler(SHAPE, fp8=False, workers=options.workers)
    try:
        return compiler.compile_all(jobs(sizes), _COMPILING * options.budget_s)
    finally:
        compiler.close()  # only now may this process use the GPU: the compiler's are its forks


def _compile_projections() -> None:
    major, minor = torch.cuda.get_device_capability()
    shapes = [(PROJECTIONS[name], all_) for name, all_ in CONFIGS.items()]
    precompile([(s.op, s.columns, one) for s, all_ in shapes for one in all_], 10 * major + minor)


def read_experts(folder: Path) -> dict[str, Table]:
    """The tables of this GPU, by axis."""
    paths = {axis: folder / _file_name(axis) for axis in EXPERTS}
    if missing := [str(path) for path in paths.values() if not path.is_file()]:
        raise SystemExit(
            f"No expert tiles to start from: {', '.join(missing)}. Write them with "
            "tools/tune_experts.py --shape tp1 first."
        )
    return {axis: json.loads(path.read_text()) for axis, path in paths.items()}


def _file_name(axis: str) -> str:
    return file_name(SHAPE, fp8=False, down=EXPERTS[axis] == "down")


def _tune(
    size: Size,
    weights: Sequence[Weights],
    bench: Bench,
    ready: set[Job],
    end: float,
    tuned: Tuned,
    options: argparse.Namespace,
) -> None:
    start = shipped(size, tuned.experts, options.attention)
    timer = Timer(size, weights)
    print(f"{size.name}: reads {timer.experts_read(start)} experts", flush=True)
    search = Search(
        start=start,
        axes=axes(size, lambda variant: (size.tokens, variant) in ready),
        measure=timer.measure,
        in_time=lambda: time.monotonic() < end,
    )
    tuned.found[size] = checked(size, search.run(), start, bench)
    tuned.rows += csv_rows(
        size.name, search.measured, gpu=torch.cuda.get_device_name(), commit=commit()
    )
    before, after = search.measured[-2:]
    print(f"{size.name}: shipped {before.us:.1f} us a layer, tuned {after.us:.1f}", flush=True)


def _write(tuned: Tuned, options: argparse.Namespace) -> None:
    options.out_experts.mkdir(parents=True, exist_ok=True)
    for axis, old in tuned.experts.items():
        path = options.out_experts / _file_name(axis)
        path.write_text(json.dumps(with_tiles(old, axis, tuned.found), indent=4) + "\n")
        print(f"wrote {path}")
    write(options.out_linear, with_configs(json.loads(configs.TABLE.read_text()), tuned.found))
    table((options.csv or RESULTS / gpu_name()) / "layer_tiles.csv", tuned.rows)


if __name__ == "__main__":
    main()

"""What the kernel benchmarks share: arguments, timing, the table and the CSV.

On a GPU a number is the median over CUDA-graph replays of many calls back to back, so it contains
no launch overhead. Calls rotate through copies of the inputs: as many as fill twice the L2 cache,
but at most `MOST_COPIES`; `cold` says whether they fill it. A decode batch is small, and warm here
as in the model, where the kernel before has just written it. On a CPU a number is wall-clock time,
which only checks the benchmark itself.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import importlib.metadata
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import RESULTS, commit

PEAK_BYTES_PER_SECOND = {"h200": 4.8e12, "h100": 3.35e12}
MOST_COPIES = 64
CALLS_PER_REPLAY, REPLAYS = 64, 20

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One shape: its label, tokens, and what a call moves (bytes) and computes (operations)."""

    shape: str
    tokens: int
    bytes: int
    flops: int


@dataclass(frozen=True)
class Implementation:
    """`prepare(case, copy)` makes inputs number `copy`, and returns the call that uses them."""

    name: str
    prepare: Callable[[Case, int], Call]
    cuda_only: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the CSV. Times are empty where `note` says why."""

    op: str
    shape: str
    tokens: int
    implementation: str
    us: float | None
    gb_per_s: float | None
    of_peak: float | None
    gflop_per_s: float | None
    copies: int
    cold: bool
    note: str = ""


def parse(description: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="two shapes, few repetitions")
    parser.add_argument(
        "--no-sglang", action="store_true", help="leave out the columns that import sglang"
    )
    parser.add_argument(
        "--out", type=Path, help="directory of the CSV (default on a GPU: results/<gpu>)"
    )
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU here, which --device cuda needs. Try --device cpu --quick.")
    return options


def run(
    op: str,
    cases: Sequence[Case],
    implementations: Sequence[Implementation],
    options: argparse.Namespace,
) -> list[Row]:
    """Time every implementation on every case, print the table, write the CSV."""
    if options.quick:
        cases = [cases[0], cases[len(cases) // 2]]
    rows = []
    where = options.out or (RESULTS / gpu_name() if options.device == "cuda" else None)
    for row in _rows(op, cases, implementations, options):
        print(_line(row), flush=True)
        rows.append(row)
        if where is not None:  # each time: a run that is cut off leaves what it has
            _write(where / f"{op}.csv", rows)
    if where is not None:
        print(f"wrote {where / op}.csv")
    return rows


def _rows(
    op: str,
    cases: Sequence[Case],
    implementations: Sequence[Implementation],
    options: argparse.Namespace,
) -> Iterator[Row]:
    on_gpu = options.device == "cuda"
    for case in cases:
        copies = _copies(case) if on_gpu else 1
        for implementation in implementations:
            if implementation.cuda_only and not on_gpu:
                continue
            us, note = None, ""
            try:
                calls = [implementation.prepare(case, copy) for copy in range(copies)]
                us = (graph_us if on_gpu else _wall_us)(calls, options.quick)
            except (ImportError, RuntimeError) as error:
                note = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
            yield _row(op, case, implementation.name, us, copies, note)


def _copies(case: Case) -> int:
    return min(MOST_COPIES, 1 + 2 * l2_bytes() // case.bytes)


def _row(op: str, case: Case, name: str, us: float | None, copies: int, note: str) -> Row:
    rate = case.bytes / us * 1e-3 if us else None
    peak = PEAK_BYTES_PER_SECOND.get(gpu_name())
    cold = torch.cuda.is_available() and copies * case.bytes > 2 * l2_bytes()
    return Row(
        op=op,
        shape=case.shape,
        tokens=case.tokens,
        implementation=name,
        us=us,
        gb_per_s=rate,
        of_peak=rate * 1e9 / peak if rate and peak else None,
        gflop_per_s=case.flops / us * 1e-3 if us else None,
        copies=copies,
        cold=cold,
        note=note,
    )


def l2_bytes() -> int:
    return torch.cuda.get_device_properties(0).L2_cache_size


def graph_us(calls: Sequence[Call], quick: bool) -> float:
    """Median microseconds a call, over replays of one graph with all copies in turn."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles, and fills the allocator's pool, before the capture
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph, count = torch.cuda.CUDAGraph(), max(CALLS_PER_REPLAY, len(calls))
    with torch.cuda.stream(side):  # torch.cuda.graph would also empty the caches, 50 ms
        graph.capture_begin()
        for i in range(count):
            calls[i % len(calls)]()
        graph.capture_end()
    graph.replay()
    times = [replay_us(graph) / count for _ in range(3 if quick else REPLAYS)]
    return statistics.median(times)


def replay_us(graph: torch.cuda.CUDAGraph) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def _wall_us(calls: Sequence[Call], quick: bool) -> float:
    times = []
    for i in range(3 if quick else 20):
        begin = time.perf_counter()
        calls[i % len(calls)]()
        times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times)


def _line(row: Row) -> str:
    if row.us is None:
        return f"{row.op} {row.shape:>14} {row.implementation:>10}  {row.note}"
    share = f"{row.of_peak:6.1%} of peak" if row.of_peak else ""
    where = "L2 cold" if row.cold else "L2 warm"
    numbers = f"{row.us:10.2f} us {row.gb_per_s:8.1f} GB/s {share:>15}"
    return f"{row.op} {row.shape:>14} {row.implementation:>10} {numbers}  {where}"


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    context = _context()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), *context])
        writer.writeheader()
        for row in rows:
            values = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
            writer.writerow({**values, **context})


@functools.cache
def _context() -> dict[str, str]:
    """What a number depends on besides the code."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cuda": str(torch.version.cuda),
        **{name: _version(name) for name in ("torch", "triton", "sglang")},
    }


def gpu_name() -> str:
    """`h100` for "NVIDIA H100 80GB HBM3"."""
    if not torch.cuda.is_available():
        return "cpu"
    name = torch.cuda.get_device_name().lower()
    return re.sub(r"nvidia\s+|\s.*", "", name)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""

"""Where the time of one step goes: every GPU kernel of a decode (or draft-verify) step, by name.

    python -m benchmarks.profile_step --arms in-tree,host --batch 1,8,30 --engine '{...}' --out DIR

Arms, sizes, weights and prompts are those of `benchmarks/engine.py`. For each arm and batch it
traces 16 tokens with torch's profiler and takes the median step. A step begins with the kernel that
makes the n-gram ids, which runs once per forward of the target. It prints the number of kernels,
span, busy (the union over streams), idle (span - busy), and the time per kernel name. --out writes
one JSON per step with every kernel in order. The profiler adds about 1 us to each kernel for which
a stream waits, so spans are longer than the TPOT of `benchmarks/engine.py`: read the shares. With
speculation it also prints the step by phase (`profile_phases`).
"""

from __future__ import annotations

import argparse
import collections
import gzip
import itertools
import json
import random
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import engine as engine_benchmark
from benchmarks import profile_phases

Kernel = dict[str, Any]


@dataclass
class Step:
    """Kernels in the order in which they start; `ts` and `dur` are in us."""

    kernels: list[Kernel]
    end: float  # when the next step starts

    @property
    def span(self) -> float:
        return self.end - float(self.kernels[0]["ts"])

    @property
    def busy(self) -> float:
        total = reached = 0.0
        for kernel in self.kernels:
            begin, stop = max(kernel["ts"], reached), kernel["ts"] + kernel["dur"]
            total += max(0.0, stop - begin)
            reached = max(reached, stop)
        return total

    def by_name(self) -> list[tuple[str, int, float]]:
        totals: dict[str, list[float]] = collections.defaultdict(list)
        for kernel in self.kernels:
            totals[short(kernel["name"])].append(kernel["dur"])
        rows = [(name, len(times), sum(times)) for name, times in totals.items()]
        return sorted(rows, key=lambda row: -row[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--arms", default="in-tree,longcat")
    parser.add_argument("--batch", default="1,8,30")
    parser.add_argument("--input", type=int, default=4096)
    parser.add_argument("--engine", default="{}", help="sglang.Engine arguments, JSON")
    parser.add_argument("--config", default="{}", help="changes to lite_config.json, JSON")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", type=Path, help="directory for the steps as JSON")
    parser.add_argument("--spans", action="store_true", help="phases by SGLang's marks, slower")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        trace_arm(args)
    else:
        engine_benchmark.run_arms("benchmarks.profile_step", args.arms)


def trace_arm(args: argparse.Namespace) -> None:
    batches = engine_benchmark.parse_batches(args.batch, args.input)
    flags = engine_benchmark.ARMS[args.arm].engine | json.loads(args.engine)
    engine = engine_benchmark.start_engine(args, batches, output=32)
    for size, length in batches:
        prompts = engine_benchmark.random_prompts(size, length, random.Random(size))
        engine_benchmark.generate(engine, prompts, 8)
        engine_benchmark.generate(engine, prompts, 8)  # the same with a cached prefix
        with tempfile.TemporaryDirectory() as directory:
            activities = ["CPU", "GPU"] if args.spans else ["GPU"]
            # Without stacks and shapes, which SGLang records unless told otherwise: with --spans
            # they would slow down the host, whose idle times this is about.
            engine.start_profile(
                activities=activities, output_dir=directory, with_stack=False, record_shapes=False
            )
            engine_benchmark.generate(engine, prompts, 16)
            engine.stop_profile()
            step = median_step(read_trace(Path(directory)))
        name = f"{args.arm}-{size}x{length}"
        print_step(name, step, args.rows)
        if "speculative_algorithm" in flags:
            print(profile_phases.table(profile_phases.summary(step.kernels, step.end)), flush=True)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{name}.json").write_text(json.dumps(step.kernels))
    engine.shutdown()


def read_events(directory: Path, patience_s: float = 60) -> list[dict[str, Any]]:
    """All events of the first rank's trace. Waits until the trace is written."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            first = min(directory.rglob("*.gz"))
            events: list[dict[str, Any]] = json.loads(gzip.decompress(first.read_bytes()))[
                "traceEvents"
            ]
            return events
        except (ValueError, EOFError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def read_trace(directory: Path) -> list[Kernel]:
    """Kernels and copies of the first rank's trace, in the order of their start."""
    events = read_events(directory)
    wanted = ("kernel", "gpu_memcpy", "gpu_memset")
    kernels = [
        {
            "name": event["name"],
            "ts": event["ts"],
            "dur": event["dur"],
            "stream": event["args"]["stream"],
            "correlation": event["args"]["correlation"],
        }
        for event in events
        if event.get("cat") in wanted
    ]
    kernels.sort(key=lambda kernel: kernel["ts"])
    profile_phases.mark(kernels, events)
    return kernels


def median_step(kernels: list[Kernel]) -> Step:
    marks = [i for i, kernel in enumerate(kernels) if profile_phases.TARGET.search(kernel["name"])]
    first = kernels[marks[-1]]["name"]  # in-tree makes its ids in two kernels: count one
    marks = [i for i in marks if kernels[i]["name"] == first]
    steps = [
        Step(kernels[begin:end], kernels[end]["ts"]) for begin, end in itertools.pairwise(marks)
    ]
    middle = statistics.median_low(step.span for step in steps)
    return next(step for step in steps if step.span == middle)


def short(name: str) -> str:
    """A kernel's name without return type, anonymous namespaces and most of its template."""
    name = re.sub(r"^void |\(anonymous namespace\)::|at::native::", "", name)
    return re.sub(r"\(.*$", "", name)[:100]


def print_step(name: str, step: Step, rows: int) -> None:
    idle = step.span - step.busy
    print(
        f"STEP {name}: {len(step.kernels)} kernels, {step.span / 1e3:.3f} ms, "
        f"busy {step.busy / 1e3:.3f}, idle {idle / 1e3:.3f}"
    )
    for kernel, count, total in step.by_name()[:rows]:
        print(f"  {total:9.1f} us  n={count:4d}  {total / count:8.2f} us each  {kernel}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

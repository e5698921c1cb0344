"""A PROJECTION of decode steps to more GPUs than were available. Only its inputs are measured.

    python -m benchmarks.projection --measured benchmarks/results/h200/tp1.json --arm host \
        --all-reduce allreduce.csv --gpu H200 --ranks 2,8

Inputs: a result of `benchmarks/engine.py` on one GPU, and the CSV of `benchmarks/allreduce.py`. The
formula and its assumptions are in `roofline.projected_seconds`. If the CSV has no row for a number
of GPUs, its largest number is taken and named in the last column. The result is then a lower bound,
since an all-reduce over more ranks is not faster.
--check FILE adds the measured step of a run on several GPUs, to judge the projection. --check-arm
names its arm if that is another one (the tables' place changes a step by 0.4 %).
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sglang_longcat.planning import roofline
from sglang_longcat.planning.estimate import read_config

Times = dict[int, dict[int, float]]  # GPUs -> batch -> seconds of one all-reduce
HEAD = (
    "| GPUs | batch | GB read by the busiest rank | all-reduces | us each | TPOT, projected "
    "| tok/s, projected | measured | all-reduce of |\n|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    args = parse()
    print(f"PROJECTION from {args.measured.name} ({args.arm}), not a measurement\n\n{HEAD}")
    for row in rows(args):
        print(row)


def parse() -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    engine = "result of benchmarks/engine.py on"
    parser.add_argument("--measured", type=Path, required=True, help=f"{engine} one GPU")
    parser.add_argument("--arm", default="host")
    parser.add_argument("--all-reduce", type=Path, required=True, help="benchmarks/allreduce.py's")
    parser.add_argument("--gpu", choices=roofline.GPUS, default="H200")
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--check", type=Path, help=f"{engine} several GPUs")
    parser.add_argument("--check-arm", help="--arm without it")
    return parser.parse_args()


def rows(args: argparse.Namespace) -> Iterator[str]:
    one_gpu = results(args.measured, args.arm, ranks=1)
    times = read_times(args.all_reduce)
    for ranks in map(int, args.ranks.split(",")):
        timed_ranks = ranks if ranks in times else max(times)
        arm = args.check_arm or args.arm
        checked = results(args.check, arm, ranks=ranks) if args.check else {}
        for (batch, length), seconds in sorted(one_gpu.items()):
            all_reduce = time_at(times[timed_ranks], batch)
            measured = checked.get((batch, length))
            yield line(args, ranks, batch, length, seconds, all_reduce) + (
                f" {f'{measured * 1e3:.2f} ms' if measured else ''} | {timed_ranks} GPUs |"
            )


def line(
    args: argparse.Namespace, ranks: int, batch: int, length: int, one_gpu: float, all_reduce: float
) -> str:
    config, gpu = read_config(None), roofline.GPUS[args.gpu]
    size: dict[str, Any] = {"batch": batch, "context": length, "ranks": ranks}
    read = roofline.rank_bytes(config, **size)
    step = roofline.projected_seconds(gpu, config, **size, one_gpu=one_gpu, all_reduce=all_reduce)
    return (
        f"| {ranks} x {args.gpu} | {batch} | {read / 1e9:.2f} | {roofline.all_reduces(config)} "
        f"| {all_reduce * 1e6:.1f} | {step * 1e3:.2f} ms | {batch / step:,.0f} |"
    )


def results(file: Path, arm: str, *, ranks: int) -> dict[tuple[int, int], float]:
    """(batch, input) -> measured seconds of a step; empty if the file is of another number of GPUs.

    Raises SystemExit if --measured is not of one GPU, or lacks the arm.
    """
    report = json.loads(file.read_text())
    tp_size = report["engine"].get("tp_size", 1)
    if tp_size != ranks and ranks > 1:
        return {}
    if tp_size != ranks or arm not in report["results"]:
        raise SystemExit(
            f"{file}: tp_size {tp_size}, arms {', '.join(report['results'])}; expected a result on "
            f"one GPU with the arm {arm}. Choose another file or --arm."
        )
    table = report["results"].get(arm, [])
    return {(row["batch"], row.get("input", 4096)): row["tpot_ms"] / 1e3 for row in table}


def read_times(file: Path) -> Times:
    times: Times = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            of_size = times.setdefault(int(row["gpus"]), {})
            of_size[int(row["batch"])] = float(row["engine_us"]) / 1e6
    return times


def time_at(times: dict[int, float], batch: int) -> float:
    """Of the smallest measured batch that is at least as large as `batch`, else of the largest."""
    return times[min((measured for measured in times if measured >= batch), default=max(times))]


if __name__ == "__main__":
    main()

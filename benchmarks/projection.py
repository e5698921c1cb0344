"""PROJECTION of decode steps on more GPUs than were at hand; measured are only its inputs.

    python -m benchmarks.projection --measured benchmarks/results/h200/tp1.json --arm host \
        --all-reduce allreduce.csv --gpu H200 --ranks 2,8

Inputs: a result of `benchmarks/engine.py` on one GPU, the CSV of `benchmarks/allreduce.py`. The
formula and what it assumes: `roofline.projected_seconds`. Where the CSV has no row of that many
GPUs, the largest it has is taken and named in the last column: a lower bound, since more ranks sum
no faster.
--check FILE adds what a run on several GPUs really took, so that the projection can be judged;
--check-arm names its arm where that is another (the tables' place changes a step by 0.4 %).
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
    parser.add_argument("--measured", type=Path, required=True, help="bench_engine.py, one GPU")
    parser.add_argument("--arm", default="host")
    parser.add_argument("--all-reduce", type=Path, required=True, help="allreduce_time.py's CSV")
    parser.add_argument("--gpu", choices=roofline.GPUS, default="H200")
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--check", type=Path, help="bench_engine.py on several GPUs")
    parser.add_argument("--check-arm", help="--arm without it")
    return parser.parse_args()


def rows(args: argparse.Namespace) -> Iterator[str]:
    one_gpu = results(args.measured, args.arm, ranks=1)
    times = read_times(args.all_reduce)
    for ranks in map(int, args.ranks.split(",")):
        taken = ranks if ranks in times else max(times)
        arm = args.check_arm or args.arm
        checked = results(args.check, arm, ranks=ranks) if args.check else {}
        for (batch, length), seconds in sorted(one_gpu.items()):
            each = time_at(times[taken], batch)
            found = checked.get((batch, length))
            yield line(args, ranks, batch, length, seconds, each) + (
                f" {f'{found * 1e3:.2f} ms' if found else ''} | {taken} GPUs |"
            )


def line(
    args: argparse.Namespace, ranks: int, batch: int, length: int, seconds: float, each: float
) -> str:
    config, gpu = read_config(None), roofline.GPUS[args.gpu]
    size: dict[str, Any] = {"batch": batch, "context": length, "ranks": ranks}
    read = roofline.rank_bytes(config, **size)
    step = roofline.projected_seconds(gpu, config, **size, one_gpu=seconds, all_reduce=each)
    return (
        f"| {ranks} x {args.gpu} | {batch} | {read / 1e9:.2f} | {roofline.all_reduces(config)} "
        f"| {each * 1e6:.1f} | {step * 1e3:.2f} ms | {batch / step:,.0f} |"
    )


def results(file: Path, arm: str, *, ranks: int) -> dict[tuple[int, int], float]:
    """(batch, input) -> measured seconds of a step; nothing if the file is of other sizes.

    Raises SystemExit where --measured is not of one GPU or lacks the arm.
    """
    report = json.loads(file.read_text())
    found = report["engine"].get("tp_size", 1)
    if found != ranks and ranks > 1:
        return {}
    if found != ranks or arm not in report["results"]:
        raise SystemExit(
            f"{file}: tp_size {found}, arms {', '.join(report['results'])}; expected a result on "
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
    """Of the smallest measured batch that is at least as large, else of the largest."""
    return times[min((b for b in times if b >= batch), default=max(times))]


if __name__ == "__main__":
    main()

"""One command, one table: TP1, TP2 + EP2, TP4 + EP4, TP8 + EP8 on the GPUs of this machine.

    python -m benchmarks.scaling --out scaling                # all sizes that the GPUs allow
    python -m benchmarks.scaling --out scaling --dry-run      # print the commands, measure nothing
    python -m benchmarks.scaling --out quick --gpus 2 --sizes 2 --batch 1,8

Per size: SGLang's in-tree class, then ours with the n-gram tables on the GPUs and in host memory,
and the same with attention DP, one after the other on this machine; full size in bf16 with dummy
weights and spread routing. Batches that the KV cache cannot hold at once are left out, by the
arithmetic of `sglang-longcat estimate`. DIR gets one JSON a size and table.md. Each arm's own file
lies in DIR/arms: an arm that has one is not measured again, so the same command goes on after an
interruption; one that fails is named in the table and does not stop the others.

Owns: which runs, and the table. The measurement is `benchmarks/engine.py`'s. Wants the package
installed with SGLang, as `make setup` does.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.gpus import gpu_count
from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import reserve, roofline, sizing

BENCH = "benchmarks.engine"
SIZES = (1, 2, 4, 8)
IN_TREE_FRACTION = 0.95  # what benchmarks/engine.py gives it; ours choose their own
FOUND = 0.96  # of the KV cache expected here, engines on 1 to 4 H200 had 96.5 to 99.2 %
CONTEXT = 1.3  # GiB of what the driver shows that SGLang does not find free: 1.2 on an H100
ARMS = ("in-tree", "device", "host")


@dataclass(frozen=True)
class Plan:
    """One way to use `ranks` GPUs."""

    ranks: int
    dp: bool = False

    @property
    def name(self) -> str:
        return f"tp{self.ranks}-ep{self.ranks}" + (f"-dp{self.ranks}" if self.dp else "")

    @property
    def title(self) -> str:
        if self.ranks == 1:
            return "TP1"
        return f"TP{self.ranks} + EP{self.ranks}" + (f", attention DP{self.ranks}" * self.dp)

    @property
    def engine(self) -> dict[str, Any]:
        flags = {"tp_size": self.ranks, "ep_size": self.ranks}
        return flags | ({"attn_dp_size": self.ranks} if self.dp else {})


@dataclass(frozen=True)
class Run:
    """One arm of one plan: a process tree of its own."""

    plan: Plan
    arm: str
    batches: list[int]
    command: list[str]
    result: Path


def main() -> None:
    args = parse()
    runs = list(planned(args))
    if args.dry_run:
        for run in runs:
            print(shlex.join(run.command) if run.batches else f"# {run.result.stem}: no batch fits")
        return
    (args.out / "arms").mkdir(parents=True, exist_ok=True)
    for run in runs:
        measure(run)
        write_report(runs, args.out)  # after each arm: an interrupted run has a table too
    print((args.out / "table.md").read_text())


def parse() -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--gpus", type=int, help="how many to use; all without it")
    parser.add_argument(
        "--sizes", help="tensor-parallel sizes, say 2,8; without it all of 1, 2, 4, 8"
    )
    parser.add_argument("--batch", default="1,8,64,256")
    parser.add_argument("--input", type=int, default=4096)
    parser.add_argument("--output", type=int, default=96)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--no-dp", action="store_true", help="without the attention DP runs")
    parser.add_argument("--gpu", choices=roofline.GPUS, help="its memory; asked of nvidia-smi")
    parser.add_argument("--engine", default='{"attention_backend": "flashinfer"}')
    parser.add_argument("--config", default="{}", help="changes to lite_config.json, JSON")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    args.gpus = settle_gpus(args.gpus, found=gpu_count(), dry_run=args.dry_run)
    args.sizes = settle_sizes(args.sizes, gpus=args.gpus)
    return args


def settle_sizes(text: str | None, *, gpus: int) -> list[int]:
    """All that `gpus` allow; those of `text` must be possible, or it exits."""
    if text is None:
        return [size for size in SIZES if size <= gpus]
    sizes = [int(size) for size in text.split(",")]
    for size in sizes:
        if size not in SIZES:
            sys.exit(f"--sizes {size}: expected some of {SIZES}, which divide heads and columns.")
        if size > gpus:
            sys.exit(f"--sizes {size}: this run has {gpus} GPU(s). Leave {size} out.")
    return sizes


def settle_gpus(wanted: int | None, *, found: int, dry_run: bool) -> int:
    """GPUs to use; exits where there are fewer than asked for, unless nothing is measured."""
    if dry_run:
        return wanted or found or max(SIZES)
    if found == 0:
        sys.exit(
            "This measures GPUs and the CUDA driver shows none here. --dry-run prints its plan."
        )
    if wanted and wanted > found:
        sys.exit(
            f"--gpus {wanted}, but the CUDA driver shows {found} (CUDA_VISIBLE_DEVICES counts). "
            f"Ask for at most {found}."
        )
    return wanted or found


def planned(args: argparse.Namespace) -> Iterator[Run]:
    raw = json.loads(PUBLISHED_CONFIG.read_text()) | json.loads(args.config)
    config, gib = LongcatConfig.from_dict(raw), gpu_memory(args)
    sizes = [int(batch) for batch in args.batch.split(",")]
    for ranks in args.sizes:
        for dp in [False] if ranks == 1 or args.no_dp else [False, True]:
            for arm in args.arms.split(","):
                plan = Plan(ranks, dp)
                tokens = room(config, gib, plan, arm, rows=max(sizes))
                need = args.input + args.output
                yield planned_run(args, plan, arm, [b for b in sizes if b * need <= tokens])


def planned_run(args: argparse.Namespace, plan: Plan, arm: str, batches: list[int]) -> Run:
    result = args.out / "arms" / f"{plan.name}-{arm}.json"
    options = {
        "--arms": arm,
        "--batch": ",".join(map(str, batches)),
        "--input": args.input,
        "--output": args.output,
        "--engine": json.dumps(json.loads(args.engine) | plan.engine),
        "--config": args.config,
        "--out": result,
    }
    words = [str(word) for option in options.items() for word in option]
    return Run(plan, arm, batches, [sys.executable, "-m", BENCH, *words], result)


def gpu_memory(args: argparse.Namespace) -> float:
    """GiB that SGLang finds free on one GPU."""
    if args.gpu or gpu_count() == 0:
        return roofline.GPUS[args.gpu or "H200"].memory
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()
    return min(map(float, lines)) / 1024 - CONTEXT


def room(config: LongcatConfig, gib: float, plan: Plan, arm: str, *, rows: int) -> int:
    """Tokens of KV cache in all beside graphs of `rows`; negative if the weights do not fit."""
    replicas = plan.ranks if plan.dp else 1
    share = sizing.parts(config, ranks=plan.ranks, attention_dp=replicas)
    tables = 0 if arm == "host" else share.tables
    gpu = roofline.Gpu(memory=gib, bandwidth=1, bf16=1)
    chunk, _ = reserve.defaults(gib * 1024, plan.ranks)
    kept = reserve.reserve_mb(chunk, rows, plan.ranks, attention_dp=replicas) / 1024
    fraction = IN_TREE_FRACTION if arm == "in-tree" else 1 - kept / gib
    tokens = roofline.kv_tokens(
        gpu, config, weights=share.without_tables + tables, mem_fraction=fraction
    )
    return int(FOUND * tokens * replicas)


def measure(run: Run) -> None:
    """Unless its result lies there already; failures are left to the table."""
    if run.batches and not run.result.exists():
        print(f"== {run.plan.title}, {run.arm}: {shlex.join(run.command)}", flush=True)
        subprocess.run(run.command, check=False)


def write_report(runs: list[Run], out: Path) -> None:
    """One JSON a plan, of the arms that have a result, and the table of all."""
    lines = []
    for plan in dict.fromkeys(run.plan for run in runs):
        arms = [run for run in runs if run.plan == plan]
        reports = {
            run.arm: json.loads(run.result.read_text()) for run in arms if run.result.exists()
        }
        results = {arm: report["results"][arm] for arm, report in reports.items()}
        for run in arms:
            lines += table_rows(run, results)
        if reports:
            first = next(iter(reports.values()))
            whole = {
                "commands": [report["command"] for report in reports.values()],
                "engine": first["engine"],
                "versions": first["versions"],
                "results": results,
            }
            (out / f"{plan.name}.json").write_text(json.dumps(whole, indent=1))
    (out / "table.md").write_text("\n".join([*HEAD, *lines, ""]))


COLUMNS = (
    "GPUs",
    "arm",
    "batch",
    "TPOT ms",
    "against in-tree",
    "decode tok/s",
    "prefill tok/s",
    "against in-tree",
    "GiB used per GPU",
    "KV tokens of a DP rank",
)
HEAD = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]


def table_rows(run: Run, rows: dict[str, list[dict[str, Any]]]) -> list[str]:
    """A ratio above 1 is faster than in-tree in the same run."""
    if run.arm not in rows:
        why = "no result" if run.batches else "does not fit"
        return [f"| {run.plan.title} | {run.arm} | {why}" + " |" * (len(COLUMNS) - 2)]
    base = {row["batch"]: row for row in rows.get("in-tree", [])}
    lines = []
    for row in rows[run.arm]:
        other = base.get(row["batch"])
        cells = [
            run.plan.title,
            run.arm,
            str(row["batch"]),
            f"{row['tpot_ms']:.2f}",
            f"{other['tpot_ms'] / row['tpot_ms']:.2f}" if other else "",
            f"{row['tok_s']:,.0f}",
            f"{row['prefill_tok_s']:,.0f}",
            f"{row['prefill_tok_s'] / other['prefill_tok_s']:.2f}" if other else "",
            memory_cell(row.get("used_gib", [])),
            f"{row['kv_tokens']:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def memory_cell(used: list[float]) -> str:
    """Of the GPUs in use: one figure, or the least and the most."""
    low, high = min(used, default=0.0), max(used, default=0.0)
    return f"{high:.1f}" if high - low < 0.1 else f"{low:.1f} to {high:.1f}"


if __name__ == "__main__":
    main()

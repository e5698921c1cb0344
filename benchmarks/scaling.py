"""One command, one table: TP1, TP2 + EP2, TP4 + EP4, TP8 + EP8 on the GPUs of this machine.

    python -m benchmarks.scaling --out scaling                # all sizes that the GPUs allow
    python -m benchmarks.scaling --out scaling --dry-run      # print the commands, measure nothing
    python -m benchmarks.scaling --out quick --gpus 2 --sizes 2 --batch 1,8

Per size it runs three arms one after the other: SGLang's in-tree class, then ours with the n-gram
tables on the GPUs and in host memory. Then it runs the same with attention DP. The model has full
size in bf16, with dummy weights and spread routing. Batches that the KV cache cannot hold at once
are left out, by the arithmetic of `sglang-longcat estimate`. DIR gets one JSON a size and table.md.
Each arm's own file is in DIR/arms: an arm that has one is not measured again, so the same command
continues after an interruption. An arm that fails is named in the table and does not stop the
others.

Owns: which runs there are, and the table. The measurement is `benchmarks/engine.py`'s. Needs the
package installed with SGLang, as `make setup` does.
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
from sglang_longcat.planning import reserve, roofline
from sglang_longcat.planning.plan import MachineMemory, MemoryFlags, plan_memory

BENCH = "benchmarks.engine"
SIZES = (1, 2, 4, 8)
IN_TREE_FRACTION = 0.95  # what benchmarks/engine.py gives in-tree; our arms choose their own
REAL_SHARE = 0.96  # of the planned KV cache; engines on 1 to 4 H200 had 96.5 to 99.2 % of it
CUDA_CONTEXT = 1.3  # GiB that the driver shows and SGLang does not find free: 1.2 on an H100
ARMS = ("in-tree", "device", "host")


@dataclass(frozen=True)
class Parallelism:
    """One way to use `ranks` GPUs; dp: with a replica of attention on each."""

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
    """One arm of one size, measured in a process of its own."""

    parallelism: Parallelism
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
    args.gpus = settle_gpus(args.gpus, visible=gpu_count(), dry_run=args.dry_run)
    args.sizes = settle_sizes(args.sizes, gpus=args.gpus)
    return args


def settle_sizes(text: str | None, *, gpus: int) -> list[int]:
    """All sizes that `gpus` allow, or those of `text`; exits if one of these is not possible."""
    if text is None:
        return [size for size in SIZES if size <= gpus]
    sizes = [int(size) for size in text.split(",")]
    for size in sizes:
        if size not in SIZES:
            sys.exit(f"--sizes {size}: expected some of {SIZES}, which divide heads and columns.")
        if size > gpus:
            sys.exit(f"--sizes {size}: this run has {gpus} GPU(s). Leave {size} out.")
    return sizes


def settle_gpus(wanted: int | None, *, visible: int, dry_run: bool) -> int:
    """GPUs to use. Exits if there are fewer than asked for, except in a dry run."""
    if dry_run:
        return wanted or visible or max(SIZES)
    if visible == 0:
        sys.exit(
            "This measures GPUs and the CUDA driver shows none here. --dry-run prints its plan."
        )
    if wanted and wanted > visible:
        sys.exit(
            f"--gpus {wanted}, but the CUDA driver shows {visible} (CUDA_VISIBLE_DEVICES counts). "
            f"Ask for at most {visible}."
        )
    return wanted or visible


def planned(args: argparse.Namespace) -> Iterator[Run]:
    raw = json.loads(PUBLISHED_CONFIG.read_text()) | json.loads(args.config)
    config, gib = LongcatConfig.from_dict(raw), gpu_memory(args)
    batches = [int(batch) for batch in args.batch.split(",")]
    request = args.input + args.output  # tokens
    for ranks in args.sizes:
        for dp in [False] if ranks == 1 or args.no_dp else [False, True]:
            parallelism = Parallelism(ranks, dp)
            for arm in args.arms.split(","):
                tokens = kv_tokens(config, gib, parallelism, arm, rows=max(batches))
                fitting = [batch for batch in batches if batch * request <= tokens]
                yield planned_run(args, parallelism, arm, fitting)


def planned_run(
    args: argparse.Namespace, parallelism: Parallelism, arm: str, batches: list[int]
) -> Run:
    result = args.out / "arms" / f"{parallelism.name}-{arm}.json"
    options = {
        "--arms": arm,
        "--batch": ",".join(map(str, batches)),
        "--input": args.input,
        "--output": args.output,
        "--engine": json.dumps(json.loads(args.engine) | parallelism.engine),
        "--config": args.config,
        "--out": result,
    }
    words = [str(word) for option in options.items() for word in option]
    return Run(parallelism, arm, batches, [sys.executable, "-m", BENCH, *words], result)


def gpu_memory(args: argparse.Namespace) -> float:
    """GiB that SGLang finds free on one GPU."""
    if args.gpu or gpu_count() == 0:
        return roofline.GPUS[args.gpu or "H200"].memory
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()
    return min(map(float, lines)) / 1024 - CUDA_CONTEXT


def kv_tokens(
    config: LongcatConfig, free_gib: float, parallelism: Parallelism, arm: str, *, rows: int
) -> int:
    """Tokens of KV cache of all replicas, beside graphs of `rows`; negative if the weights do not
    fit."""
    ranks = parallelism.ranks
    replicas = ranks if parallelism.dp else 1
    gpu_mb = free_gib * 1024
    chunk, _ = reserve.default_prefill_and_graph_rows(gpu_mb, ranks)
    flags = MemoryFlags(
        tp=ranks,
        attention_dp=replicas,
        mem_fraction=IN_TREE_FRACTION if arm == "in-tree" else None,
        reserve_mb=reserve.runtime_reserve_mb(
            chunk, rows, ranks, gpu_mb=gpu_mb, attention_dp=replicas
        ),
        tables="host" if arm == "host" else "device",
    )
    plan = plan_memory(config, MachineMemory.of_gpu(free_gib), flags)
    return int(REAL_SHARE * plan.kv_tokens * replicas)


def measure(run: Run) -> None:
    """Runs an arm that has no result yet. The table shows the failures."""
    if run.batches and not run.result.exists():
        print(f"== {run.parallelism.title}, {run.arm}: {shlex.join(run.command)}", flush=True)
        subprocess.run(run.command, check=False)


def write_report(runs: list[Run], out: Path) -> None:
    """One JSON per `Parallelism`, of the arms that have a result, and one table of all runs."""
    lines = []
    for parallelism in dict.fromkeys(run.parallelism for run in runs):
        arms = [run for run in runs if run.parallelism == parallelism]
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
            (out / f"{parallelism.name}.json").write_text(json.dumps(whole, indent=1))
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
    """A ratio above 1 means faster than in-tree in the same run."""
    if run.arm not in rows:
        why = "no result" if run.batches else "does not fit"
        return [f"| {run.parallelism.title} | {run.arm} | {why}" + " |" * (len(COLUMNS) - 2)]
    in_tree = {row["batch"]: row for row in rows.get("in-tree", [])}
    lines = []
    for row in rows[run.arm]:
        baseline = in_tree.get(row["batch"])
        cells = [
            run.parallelism.title,
            run.arm,
            str(row["batch"]),
            f"{row['tpot_ms']:.2f}",
            f"{baseline['tpot_ms'] / row['tpot_ms']:.2f}" if baseline else "",
            f"{row['tok_s']:,.0f}",
            f"{row['prefill_tok_s']:,.0f}",
            f"{row['prefill_tok_s'] / baseline['prefill_tok_s']:.2f}" if baseline else "",
            memory_cell(row.get("used_gib", [])),
            f"{row['kv_tokens']:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def memory_cell(used: list[float]) -> str:
    """GiB used on the GPUs: one figure if they agree, else the least and the most."""
    low, high = min(used, default=0.0), max(used, default=0.0)
    return f"{high:.1f}" if high - low < 0.1 else f"{low:.1f} to {high:.1f}"


if __name__ == "__main__":
    main()

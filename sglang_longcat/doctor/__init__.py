"""`sglang-longcat doctor`: would the server start here, with what, and if not, what to do.

Owns: the order of the checks, the printing and the exit status. The checks: `software` (SGLang and
the plugin), `machine` (what there is), `checkpoint`, `placement` (does it fit; which recipe).
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from sglang_longcat.doctor.finding import Finding, Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-path", help="directory, or the name of a downloaded model")
    parser.add_argument("--tp", type=int, help="tensor-parallel size (default: all GPUs)")
    parser.add_argument("--attn-dp-size", type=int, default=1, help="replicas of attention")
    parser.add_argument("--mem-fraction", type=float, help="--mem-fraction-static, if you set it")
    parser.add_argument("--context", type=int, default=32768, help="--context-length")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """0: no errors; 1: the server would not start, or not serve the model."""
    found = examine(args)
    failed = any(finding.status is Status.ERROR for finding in found)
    if args.json:
        report = {"healthy": not failed, "findings": [asdict(finding) for finding in found]}
        print(json.dumps(report, indent=1))
    else:
        _print(found, failed=failed)
    return int(failed)


def examine(args: argparse.Namespace) -> list[Finding]:
    from sglang_longcat.doctor import machine

    here = machine.inspect()
    if not here.gpus:  # before SGLang is imported, which reads them then
        from sglang_longcat.cpu.environment import CPU_ENV

        os.environ.update({**CPU_ENV, **os.environ})
    from sglang_longcat.doctor import checkpoint, placement, software

    found = [*software.check(), *machine.check(here)]
    if args.model_path is None:
        return [*found, Finding.info("checkpoint", "not examined; name it with --model-path")]
    path, problem = checkpoint.locate(args.model_path)
    if path is None:
        return [*found, Finding.error("checkpoint", problem)]
    config, about = checkpoint.check(Path(path))
    found += about
    if config is not None:
        tp = args.tp or max(1, len(here.gpus))
        plan = placement.Plan(
            tp=tp,
            mem_fraction=args.mem_fraction,
            context=args.context,
            attention_dp=args.attn_dp_size,
        )
        found += placement.check(here, config, plan)
    return found


def _print(found: Sequence[Finding], *, failed: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for finding in found:
        table.add_row(finding.status.mark, finding.name, finding.text)
    console = Console()
    console.print(table, highlight=False, markup=False)
    console.print("Not ready: see ERROR above." if failed else "Ready.", highlight=False)

"""`sglang-longcat doctor`: would the server start here? With what, and if not, what is to be done?

Owns: the order of the checks, the printing and the exit status. The checks are in `software`
(SGLang and the plugin), `machine` (GPUs and memory), `checkpoint` (its files) and `placement` (does
the model fit, and which recipe suits the machine). `quiet` keeps what SGLang prints from the table.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from sglang_longcat.checkpoint.locate import locate
from sglang_longcat.doctor import quiet
from sglang_longcat.doctor.finding import Finding, Status
from sglang_longcat.planning import agreement, arguments
from sglang_longcat.planning.plan import MemoryFlags
from sglang_longcat.planning.sizing import KV_FLAGS, kv_dtype

if TYPE_CHECKING:
    from sglang_longcat.doctor.machine import Machine  # imports torch

_CONTEXT = 32768  # of every recipe for one GPU without more room


def add_arguments(parser: argparse.ArgumentParser) -> None:
    of, size = parser.add_argument, arguments.positive
    of("--model-path", type=arguments.model, help="directory, or the name of a downloaded model")
    of("--tp", type=size, help="tensor-parallel size (default: all GPUs)")
    of("--attn-dp-size", type=size, default=1, help="replicas of attention")
    of("--mem-fraction", type=arguments.part, help="--mem-fraction-static, if you set it")
    of("--context", type=size, help=f"--context-length (default: {_CONTEXT})")
    parser.add_argument("--draft", action="store_true", help="with speculative decoding (NEXTN)")
    parser.add_argument("--kv-cache-dtype", choices=KV_FLAGS, default=KV_FLAGS[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--verbose", action="store_true", help="with what SGLang prints")


def run(args: argparse.Namespace) -> int:
    """0: no errors; 1: the server would not start, or not serve the model."""
    findings = examine(args)
    failed = any(finding.status is Status.ERROR for finding in findings)
    if args.json:
        report = {"healthy": not failed, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(report, indent=1))
    else:
        _print(findings, failed=failed)
    return int(failed)


def examine(args: argparse.Namespace) -> list[Finding]:
    from sglang_longcat.doctor import machine

    here = machine.inspect()
    if not here.gpus:  # SGLang reads these variables while it is imported
        from sglang_longcat.cpu.environment import CPU_ENV

        os.environ.update({**CPU_ENV, **os.environ})
    findings = [*_of_software(verbose=args.verbose), *machine.check(here)]
    if args.model_path is None:
        return [*findings, Finding.info("checkpoint", "not examined; name it with --model-path")]
    with quiet.capture(verbose=args.verbose):
        return [*findings, *_of_checkpoint(args, here)]


def _of_software(*, verbose: bool) -> list[Finding]:
    """Where one is an error, what the imports printed may hold its traceback, and is shown."""
    with quiet.capture(verbose=verbose) as captured:
        from sglang_longcat.doctor import software

        findings = software.check()
    if any(finding.status is Status.ERROR for finding in findings):
        captured.replay()
    return findings


def _of_checkpoint(args: argparse.Namespace, here: Machine) -> list[Finding]:
    from sglang_longcat.doctor import checkpoint, placement

    try:
        config, findings = checkpoint.check(locate(args.model_path), draft=args.draft)
        if config is None:
            return findings
        agreement.check(config, context=args.context, ranks=(args.tp,) if args.tp else ())
    except (OSError, ValueError) as error:
        return [Finding.error("checkpoint", str(error))]
    flags = MemoryFlags(
        tp=args.tp or max(1, len(here.gpus)),
        attention_dp=args.attn_dp_size,
        mem_fraction=args.mem_fraction,
        draft=args.draft,
        kv_dtype=kv_dtype(args.kv_cache_dtype),
        tokens_wanted=args.context or min(_CONTEXT, config.max_position_embeddings),
    )
    return [*findings, *placement.check(here, config, flags)]


def _print(findings: Sequence[Finding], *, failed: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(finding.status.mark, finding.name, finding.text)
    console = Console()
    console.print(table, highlight=False, markup=False)
    console.print("Not ready: see ERROR above." if failed else "Ready.", highlight=False)

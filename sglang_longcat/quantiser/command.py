"""`sglang-longcat quantize SOURCE OUT`: flags, progress bar, and what it prints at the end.

Owns: the two tables (error by kind of layer; layers that stay as they are) and the peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_longcat.checkpoint.layout import MTP_PREFIX
from sglang_longcat.checkpoint.locate import locate
from sglang_longcat.quantisation.packed import GROUP_SIZES
from sglang_longcat.quantiser.selection import Options

if TYPE_CHECKING:
    from rich.table import Table

    from sglang_longcat.quantiser.convert import Job, Report

_GIB = 1 << 30
_MOST_THREADS = 8  # each has one weight's temporary tensors: 0.1 GiB for the largest of the model
_INTERRUPTED = 130  # the exit status of a shell for Ctrl-C
_OF_NO_KIND = ("model", "layers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="the bf16 checkpoint: a directory or a downloaded model")
    parser.add_argument("out", type=Path, help="directory to write; must not exist")
    parser.add_argument("--method", choices=("int4",), default="int4", help="4-bit integers")
    parser.add_argument(
        "--group-size", type=int, choices=GROUP_SIZES, default=128, help="weights with one scale"
    )
    parser.add_argument("--asymmetric", action="store_true", help="a zero point for each group")
    parser.add_argument("--mtp", action="store_true", help="quantise the MTP layer too")
    parser.add_argument("--kv-b-proj", action="store_true", help="quantise kv_b_proj too")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=min(cores, _MOST_THREADS))


def run(args: argparse.Namespace) -> int:
    from sglang_longcat.quantiser.convert import prepare

    if args.threads < 1:
        raise ValueError(f"--threads {args.threads}: expected at least 1.")
    options = Options(args.group_size, not args.asymmetric, args.mtp, args.kv_b_proj)
    job = prepare(locate(args.source), args.out, options)
    try:
        report = _convert(job, args.threads)
    except KeyboardInterrupt:
        print(
            f"\nInterrupted: {job.partial} is removed, {job.out} is not written.", file=sys.stderr
        )
        return _INTERRUPTED
    _print(job, report)
    return 0


def _convert(job: Job, threads: int) -> Report:
    from rich.console import Console
    from rich.progress import Progress

    from sglang_longcat.quantiser.convert import convert

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=job.bytes_read)
        return convert(
            job,
            threads=threads,
            step=lambda size: progress.advance(task, size),
            started=lambda name: progress.update(task, description=name),
        )


def _print(job: Job, report: Report) -> None:
    from rich.console import Console

    console = Console()
    console.print(_errors(report.errors))
    console.print(_kept(report.selection.kept))
    read, written = report.bytes_read / _GIB, report.bytes_written / _GIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB
    console.print(
        f"Errors are |q - w| / |w|.\n{job.out}: {report.selection.stored}; {read:.2f} GiB became "
        f"{written:.2f}. Peak memory {peak:.2f} GiB, with mapped files.",
        highlight=False,
        soft_wrap=True,
    )


def kind(module: str) -> str:
    """ "model.layers.3.mlp.experts.7.up_proj" -> "mlp.experts.up_proj" """
    parts = module.split(".")
    return ".".join(part for part in parts if not part.isdigit() and part not in _OF_NO_KIND)


def by_kind(modules: Iterable[str]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = defaultdict(list)
    for module in modules:
        kinds[kind(module)].append(module)
    return kinds


def _short(module: str) -> str:
    """Without what all layers have in common, so that it fits into 80 columns."""
    return module.removeprefix("model.layers.")


def _table(*titles: str) -> Table:
    """Folds what is too wide: an ellipsis would hide a layer's number."""
    from rich import box
    from rich.table import Column, Table

    columns = (Column(title, overflow="fold") for title in titles)
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _errors(errors: Mapping[str, float]) -> Table:
    """Errors are relative: |q - w| / |w|."""
    table = _table("quantised", "layers", "mean error", "worst", "its layer")
    for name, modules in by_kind(errors).items():
        worst = max(modules, key=errors.__getitem__)
        mean = sum(errors[module] for module in modules) / len(modules)
        table.add_row(name, f"{len(modules)}", f"{mean:.4f}", f"{errors[worst]:.4f}", _short(worst))
    return table


def _kept(kept: Mapping[str, str]) -> Table:
    table = _table("not quantised", "layers", "why")
    draft = [module for module in kept if module.startswith(MTP_PREFIX)]
    kinds = by_kind(module for module in kept if module not in draft)
    for name, modules in [*kinds.items(), *([("mtp", draft)] if draft else [])]:
        table.add_row(name, f"{len(modules)}", kept[modules[0]])
    return table

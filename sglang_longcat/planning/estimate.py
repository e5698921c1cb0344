"""`sglang-longcat estimate`: what fits on which GPUs, and the shortest decode step there.

Owns: the rows of the table and its printing. The arithmetic is in `plan` and `roofline`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.checkpoint.check import check_draft
from sglang_longcat.checkpoint.locate import locate
from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import agreement, arguments, roofline, sizing
from sglang_longcat.planning.placement import Where
from sglang_longcat.planning.plan import MachineMemory, MemoryFlags, plan_memory
from sglang_longcat.planning.roofline import GPUS
from sglang_longcat.planning.sizing import GIB


@dataclass(frozen=True)
class Choice:
    """One way to serve the model."""

    gpu: str
    tp: int
    dtype: str  # of the linear layers: a value of --dtype, or another format of the checkpoint
    tables: Where
    table_dtype: sizing.TableDtype
    attention_dp: int = 1  # replicas of attention among the tp ranks
    kv_dtype: sizing.KvDtype = "bf16"


@dataclass(frozen=True)
class Row:
    """Sizes in GiB per GPU, except host_gib, which is for all of them; TPOT bounds in ms."""

    choice: Choice
    weights_gib: float
    tables_gib: float
    host_gib: float
    kv_tokens: int  # of all replicas; negative: the weights do not fit
    requests: int  # of the context length
    tpot_ms: dict[int, float]  # by batch, of the batches that fit


def read_config(path: str | Path | None, *, draft: bool = False) -> LongcatConfig:
    """Reads a checkpoint (a directory or a downloaded model) or a config.json; None: the published
    model. draft: raises CheckpointError for a checkpoint without the MTP layer."""
    path = Path(path or PUBLISHED_CONFIG)
    if path.is_file():
        return LongcatConfig.from_file(path)
    directory = locate(str(path))
    config = LongcatConfig.from_dir(directory)
    if draft:
        check_draft(directory, config)
    return config


def estimate(
    config: LongcatConfig,
    choice: Choice,
    *,
    context: int,
    batches: Sequence[int],
    fraction: float | None = None,
    draft: bool = False,
) -> Row:
    """The row of one choice. fraction: --mem-fraction-static; None: the plugin's choice. draft: the
    server also holds the MTP layer; the shortest step stays that without drafts. Raises KeyError
    for a GPU that `roofline.GPUS` lacks."""
    gpu, replicas = GPUS[choice.gpu], choice.attention_dp
    config = sizing.stored_as(config, choice.dtype)
    flags = MemoryFlags(
        tp=choice.tp,
        attention_dp=replicas,
        mem_fraction=fraction,
        tables=choice.tables,
        table_dtype=choice.table_dtype,
        kv_dtype=choice.kv_dtype,
        draft=draft,
    )
    plan = plan_memory(config, MachineMemory.of_gpu(gpu.memory, gpu.shown), flags)
    return Row(
        choice=choice,
        weights_gib=plan.gpu_weights / GIB,
        tables_gib=plan.gpu_tables / GIB,
        host_gib=plan.host_tables / GIB,
        kv_tokens=plan.kv_tokens * replicas,
        requests=max(plan.kv_tokens, 0) // context * replicas,
        tpot_ms={
            batch: 1e3
            * roofline.step_seconds(
                gpu,
                config,
                batch=batch,
                context=context,
                ranks=choice.tp,
                attention_dp=replicas,
                kv_dtype=choice.kv_dtype,
            )
            for batch in batches
            if -(-batch // replicas) * context <= plan.kv_tokens
        },
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-path", type=arguments.model, help="checkpoint or config.json; else published"
    )
    parser.add_argument("--gpu", nargs="+", choices=GPUS, default=list(GPUS), metavar="NAME")
    parser.add_argument("--tp", nargs="+", type=arguments.positive, default=[1], metavar="N")
    parser.add_argument(
        "--attn-dp-size",
        nargs="+",
        type=arguments.positive,
        default=[1],
        metavar="N",
        help="replicas of attention; with each --tp that it divides",
    )
    weights: dict[str, Any] = {"nargs": "+", "choices": tuple(agreement.FORMATS)}
    parser.add_argument("--dtype", **weights, help="of the linear layers (default: as stored)")
    parser.add_argument("--tables", nargs="+", choices=("device", "host"), default=None)
    tables: dict[str, Any] = {"nargs": "+", "choices": ("bf16", "fp8", "int4")}
    parser.add_argument("--table-dtype", **tables, default=["bf16"])
    kv: dict[str, Any] = {"nargs": "+", "choices": sizing.KV_FLAGS}
    parser.add_argument("--kv-cache-dtype", **kv, default=["auto"])
    parser.add_argument(
        "--context", type=arguments.positive, default=4096, help="tokens of a request"
    )
    parser.add_argument("--batch", nargs="+", type=arguments.positive, default=[1, 8, 32, 128, 400])
    parser.add_argument(
        "--mem-fraction", type=arguments.part, help="without it as the plugin chooses"
    )
    parser.add_argument("--draft", action="store_true", help="memory of speculative decoding too")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    config = read_config(args.model_path, draft=args.draft)
    agreement.check(
        config,
        context=args.context,
        ranks=args.tp,
        dtypes=(args.dtype or ()) if args.model_path else (),
    )
    rows = [
        estimate(
            config,
            choice,
            context=args.context,
            batches=args.batch,
            fraction=args.mem_fraction,
            draft=args.draft,
        )
        for choice in _choices(args, config)
    ]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _print_table(rows, args)
    return 0


def _choices(args: argparse.Namespace, config: LongcatConfig) -> list[Choice]:
    dtypes = args.dtype or [_name(config.weight_format)]
    places = args.tables or ["device", "host"]
    kv = [sizing.kv_dtype(flag) for flag in args.kv_cache_dtype]
    axes = (args.gpu, args.tp, dtypes, places, args.table_dtype, args.attn_dp_size, kv)
    choices = list(itertools.starmap(Choice, itertools.product(*axes)))
    possible = [choice for choice in choices if choice.tp % choice.attention_dp == 0]
    if not possible:
        raise ValueError(
            f"--attn-dp-size {args.attn_dp_size} divides none of --tp {args.tp}: expected a size "
            "that deals the ranks out to replicas, say --tp 8 --attn-dp-size 8."
        )
    return possible


def _name(weight_format: str) -> str:
    """The value of --dtype for a format that has one."""
    return next((d for d, f in agreement.FORMATS.items() if f == weight_format), weight_format)


def _print_table(rows: Sequence[Row], args: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for name in ("GPUs", "weights", "tables", "GiB/GPU", "host GiB", "KV tokens", "requests"):
        table.add_column(name, justify="left" if name in ("GPUs", "weights", "tables") else "right")
    for batch in args.batch:
        table.add_column(f"{batch}", justify="right")
    for row in rows:
        table.add_row(*_cells(row, args.batch))
    given = args.mem_fraction
    fraction = "as the plugin chooses it" if given is None else f"{given:g}"
    console = Console()
    console.print(table)
    console.print(
        f"Requests of {args.context:,} tokens; after them the shortest possible TPOT in ms by "
        f"batch size (memory bandwidth and arithmetic only; nothing where the batch does not fit). "
        f"--mem-fraction-static {fraction}; host GiB: of all GPUs together.",
        highlight=False,
    )


def _cells(row: Row, batches: Sequence[int]) -> list[str]:
    choice = row.choice
    head = [
        f"{choice.tp} x {choice.gpu}" + f", DP{choice.attention_dp}" * (choice.attention_dp > 1),
        choice.dtype + ", FP8 KV" * (choice.kv_dtype == "fp8"),
        f"{choice.tables} {choice.table_dtype}",
        f"{row.weights_gib:.1f}",
        f"{row.host_gib:.1f}" if row.host_gib else "",
    ]
    if row.kv_tokens < 0:
        return [*head, "does not fit", *[""] * (1 + len(batches))]
    bounds = [f"{row.tpot_ms[batch]:.1f}" if batch in row.tpot_ms else "" for batch in batches]
    return [*head, f"{row.kv_tokens:,}", f"{row.requests:,}", *bounds]

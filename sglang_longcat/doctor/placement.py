"""Does the model fit on this machine, where do its tables go, and which recipe suits it?

Owns: these findings. The arithmetic is `planning/plan.py`'s, and the choice of the tables' place
`planning/placement.py`'s.
"""

from __future__ import annotations

import re
from dataclasses import replace

from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.doctor.finding import Finding
from sglang_longcat.doctor.machine import UNLIMITED, Machine
from sglang_longcat.planning import placement, reserve
from sglang_longcat.planning.plan import (
    MachineMemory,
    MemoryFlags,
    MemoryPlan,
    plan_memory,
)
from sglang_longcat.planning.sizing import GIB, MIB

# (part of the GPU's name, fewest of them, recipe in launch/recipes). The first that fits is
# suggested.
RECIPES = (
    ("H20", 8, "h20-tp8-ep8-balanced"),
    ("H800", 8, "h800-tp8-ep8-throughput"),
    ("H100", 8, "h800-tp8-ep8-throughput"),
    ("B200", 1, "b200-tp1-balanced"),
    ("H200", 2, "h200-tp2-ep2"),
    ("H200", 1, "h200-tp1-balanced"),
    ("H20", 1, "h200-tp1-throughput"),
    ("H100", 2, "h100-tp2-ep2-balanced"),
    ("H800", 2, "h100-tp2-ep2-balanced"),
    ("H100", 1, "h100-tp1-balanced"),
    ("H800", 1, "h100-tp1-balanced"),
)


def check(here: Machine, config: LongcatConfig, flags: MemoryFlags) -> list[Finding]:
    """`flags` of the server; those that LONGCAT_* variables decide are read here."""
    if not here.gpus:
        return [Finding.info("recipe", "cpu-tiny")]
    if flags.attention_dp < 1 or flags.tp % flags.attention_dp:
        text = (
            f"--attn-dp-size {flags.attention_dp} does not divide --tp {flags.tp}; "
            "use one that does"
        )
        return [Finding.error("placement", text)]
    if flags.tp > len(here.gpus):
        text = f"--tp {flags.tp}, but {len(here.gpus)} GPUs are visible; use a smaller one"
        return [Finding.error("placement", text)]
    flags = replace(flags, table_dtype=env.ngram_table_dtype())
    try:
        plan = _plan(here, config, replace(flags, tables=env.ngram_tables()))
    except ValueError as error:
        return [Finding.error("placement", str(error))]
    findings = [
        Finding.ok("placement", placement.describe(plan.tables, plan.why, plan.room)),
        _kv_cache(plan, flags),
    ]
    if plan.tables == "host":
        findings += _host(here, plan.room)
    return [*findings, Finding.info("recipe", suggest(here))]


def suggest(here: Machine) -> str:
    name = here.gpus[0].name
    for part, fewest, recipe in RECIPES:
        if re.search(rf"\b{part}\b", name) and len(here.gpus) >= fewest:
            return recipe
    return f"none for {len(here.gpus)} x {name}; compare with: sglang-longcat estimate"


def _plan(here: Machine, config: LongcatConfig, flags: MemoryFlags) -> MemoryPlan:
    gpu = min(here.gpus, key=lambda gpu: gpu.free)
    memory = MachineMemory(gpu_total=gpu.total, gpu_free=gpu.free, host=here.host)
    reserve_mb = reserve.default_runtime_reserve_mb(
        gpu.total / MIB, flags.tp, attention_dp=flags.attention_dp, draft=flags.draft
    )
    return plan_memory(config, memory, replace(flags, reserve_mb=int(reserve_mb)))


def _kv_cache(plan: MemoryPlan, flags: MemoryFlags) -> Finding:
    if plan.kv_tokens < flags.tokens_wanted:
        return Finding.error(
            "KV cache",
            f"{max(0, plan.kv_tokens):,} tokens, less than one request of {flags.tokens_wanted:,}. "
            "Use more GPUs (--tp), LONGCAT_NGRAM_TABLES=host, an FP8 checkpoint, or a shorter "
            "--context.",
        )
    text = f"{plan.kv_tokens:,} tokens expected, at --tp {flags.tp}"
    if flags.attention_dp > 1:
        text += f" and --attn-dp-size {flags.attention_dp}, on each replica"
    return Finding.ok("KV cache", text)


def _host(here: Machine, room: placement.Room) -> list[Finding]:
    findings = []
    if here.host < room.tables_on_node * placement.HOST_MARGIN:
        findings.append(
            Finding.error(
                "host memory",
                f"the tables need {room.tables_on_node * placement.HOST_MARGIN / GIB:.1f} GiB, and "
                f"{here.host / GIB:.1f} are available. Give the machine or container more memory, "
                "or store fewer bytes with LONGCAT_NGRAM_TABLE_DTYPE=fp8 or int4.",
            )
        )
    if here.memlock != UNLIMITED and here.memlock < room.tables_on_node:
        findings.append(
            Finding.warning(
                "locked memory",
                f"limited to {here.memlock / GIB:.2f} GiB; if pinning the tables fails, raise it "
                "(ulimit -l unlimited; docker run --ulimit memlock=-1)",
            )
        )
    return findings

"""Does the model fit on this machine, where do its tables go, and which recipe is for it.

Owns: these findings. The decision is `ngram.placement`'s, the arithmetic `sizing`'s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.doctor.finding import Finding
from sglang_longcat.doctor.machine import GIB, UNLIMITED, Device, Machine
from sglang_longcat.planning import placement, reserve, sizing

# (part of the GPU's name, fewest of them, recipe in launch/recipes), the first that fits.
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


@dataclass(frozen=True)
class Plan:
    """The server flags that decide about memory; mem_fraction None: the plugin chooses."""

    tp: int
    mem_fraction: float | None
    context: int
    attention_dp: int = 1


def check(here: Machine, config: LongcatConfig, plan: Plan) -> list[Finding]:
    if not here.gpus:
        return [Finding.info("recipe", "cpu-tiny")]
    if plan.attention_dp < 1 or plan.tp % plan.attention_dp:
        text = (
            f"--attn-dp-size {plan.attention_dp} does not divide --tp {plan.tp}; use one that does"
        )
        return [Finding.error("placement", text)]
    if plan.tp > len(here.gpus):
        text = f"--tp {plan.tp}, but {len(here.gpus)} GPUs are visible; use a smaller one"
        return [Finding.error("placement", text)]
    room = _room(here, config, plan)
    try:
        wish = env.ngram_tables()
        where, why = placement.choose(wish, room)
    except ValueError as error:
        return [Finding.error("placement", str(error))]
    found = [
        Finding.ok("placement", placement.describe(where, why, room)),
        _kv_cache(room, plan, on_device=where == "device"),
    ]
    if where == "host":
        found += _host(here, room)
    return [*found, Finding.info("recipe", suggest(here))]


def suggest(here: Machine) -> str:
    name = here.gpus[0].name
    for part, fewest, recipe in RECIPES:
        if re.search(rf"\b{part}\b", name) and len(here.gpus) >= fewest:
            return recipe
    return f"none for {len(here.gpus)} x {name}; compare with: sglang-longcat estimate"


def _room(here: Machine, config: LongcatConfig, plan: Plan) -> placement.Room:
    dtype: sizing.TableDtype = "fp8" if env.ngram_fp8() else "bf16"
    replicas = plan.attention_dp
    share = sizing.parts(config, ranks=plan.tp, attention_dp=replicas, table_dtype=dtype)
    smallest = min(here.gpus, key=lambda gpu: gpu.free)
    return placement.Room(
        tables=share.tables,
        tables_on_node=share.tables * (plan.tp // replicas),
        device=smallest.free - _reserve(smallest, plan) - share.without_tables,
        host=here.host,
        kv_token=sizing.kv_bytes_per_token(config),
        tokens=plan.context,
    )


def _reserve(gpu: Device, plan: Plan) -> int:
    """What lies outside of weights and KV cache, in bytes."""
    if plan.mem_fraction is not None:
        return int(gpu.total * (1 - plan.mem_fraction))
    kept = reserve.default_mb(gpu.total / 2**20, plan.tp, attention_dp=plan.attention_dp)
    return int(kept) << 20


def _kv_cache(room: placement.Room, plan: Plan, *, on_device: bool) -> Finding:
    left = room.device - (room.tables if on_device else 0)
    tokens = left // room.kv_token
    if tokens < plan.context:
        return Finding.error(
            "KV cache",
            f"{max(0, tokens):,} tokens, less than one request of {plan.context:,}. Use more GPUs "
            "(--tp), LONGCAT_NGRAM_TABLES=host, an FP8 checkpoint, or a shorter --context.",
        )
    each = f" and --attn-dp-size {plan.attention_dp}, on each replica" * (plan.attention_dp > 1)
    return Finding.ok("KV cache", f"{tokens:,} tokens expected, at --tp {plan.tp}{each}")


def _host(here: Machine, room: placement.Room) -> list[Finding]:
    found = []
    if here.host < room.tables_on_node * placement.HOST_MARGIN:
        found.append(
            Finding.error(
                "host memory",
                f"the tables need {room.tables_on_node * placement.HOST_MARGIN / GIB:.1f} GiB, and "
                f"{here.host / GIB:.1f} are available. Give the machine or container more memory, "
                "or halve the tables with LONGCAT_NGRAM_TABLE_DTYPE=fp8.",
            )
        )
    if here.memlock != UNLIMITED and here.memlock < room.tables_on_node:
        found.append(
            Finding.warning(
                "locked memory",
                f"limited to {here.memlock / GIB:.2f} GiB; if pinning the tables fails, raise it "
                "(ulimit -l unlimited; docker run --ulimit memlock=-1)",
            )
        )
    return found

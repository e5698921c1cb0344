"""Does the model fit on this machine, where do its tables go, and which recipe suits it?

Owns: these findings. The arithmetic is `planning/plan.py`'s, and the choice of the tables' place
`planning/placement.py`'s.
"""

from __future__ import annotations

from dataclasses import replace

from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.doctor.finding import Finding
from sglang_longcat.doctor.machine import UNLIMITED, Machine
from sglang_longcat.planning import placement
from sglang_longcat.planning.plan import MemoryFlags, MemoryPlan, plan_memory
from sglang_longcat.planning.sizing import GIB
from sglang_longcat.recipes import GOALS
from sglang_longcat.recipes.choose import NoRecipe, choose


def check(here: Machine, config: LongcatConfig, flags: MemoryFlags) -> list[Finding]:
    """`flags` of the server; those that LONGCAT_* variables decide are read here."""
    if not here.gpus:
        return [suggest(here, config)]
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
        flags = replace(flags, tables=env.ngram_tables())
        plan = plan_memory(config, here.hardware().memory, flags)
    except ValueError as error:
        return [Finding.error("placement", str(error))]
    findings = [
        Finding.ok("placement", placement.describe(plan.tables, plan.why, plan.room)),
        _kv_cache(plan, flags),
    ]
    if plan.tables == "host":
        findings += _host(here, plan.room)
    return [*findings, suggest(here, config)]


def suggest(here: Machine, config: LongcatConfig) -> Finding:
    """The recipe that `sglang-longcat serve` would choose, for no goal in particular."""
    try:
        return Finding.info("recipe", choose(here.hardware(), config, GOALS[0], {}).recipe.name)
    except NoRecipe as error:
        return Finding.info("recipe", f"none. {error}")


def _kv_cache(plan: MemoryPlan, flags: MemoryFlags) -> Finding:
    if plan.kv_tokens < flags.tokens_wanted:
        return Finding.error(
            "KV cache",
            f"{max(0, plan.kv_tokens):,} tokens, less than one request of {flags.tokens_wanted:,}. "
            "Use more GPUs (--tp), LONGCAT_NGRAM_TABLES=host, an FP8 or 4-bit checkpoint, or a "
            "shorter --context.",
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

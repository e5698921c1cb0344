"""The memory plan of a recipe on a machine.

Owns: what there is to plan for, and which flags and switches of a recipe the plan depends on. The
arithmetic is `planning/plan.py`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import reserve, sizing
from sglang_longcat.planning.plan import (
    MachineMemory,
    MemoryFlags,
    MemoryPlan,
    mtp_drafts,
    plan_memory,
)
from sglang_longcat.planning.sizing import GIB, MIB
from sglang_longcat.recipes import Recipe

UNKNOWN_HOST = 1 << 62  # bytes: a described machine whose host memory nobody named
Given = Mapping[str, Any]  # the user's own flags, by SGLang's names: they replace the recipe's


@dataclass(frozen=True)
class Hardware:
    """gpu: a name in which the family is a word ("NVIDIA H200", "H20-96G"); "" without a GPU."""

    gpu: str
    gpus: int
    memory: MachineMemory

    @property
    def gib(self) -> float:
        return self.memory.driver_total / GIB


def memory_plan(recipe: Recipe, here: Hardware, config: LongcatConfig, given: Given) -> MemoryPlan:
    """Of one rank, with the recipe's switches where the environment does not set them."""
    flags = {**recipe.flags, **given}
    with env.defaults(recipe.switches):
        return plan_memory(
            config,
            here.memory,
            MemoryFlags(
                tp=flags.get("tp_size", 1),
                attention_dp=flags.get("attn_dp_size", 1),
                mem_fraction=flags.get("mem_fraction_static"),
                reserve_mb=_reserve_mb(flags, here.memory.driver_total / MIB),
                tables=env.ngram_tables(),
                table_dtype=env.ngram_table_dtype(),
                kv_dtype=sizing.kv_dtype(flags.get("kv_cache_dtype")),
                draft=mtp_drafts(flags.get("speculative_algorithm")),
                tokens_wanted=context_length(recipe, config, given),
            ),
        )


def context_length(recipe: Recipe, config: LongcatConfig, given: Given) -> int:
    """Tokens of the longest request."""
    flags = {**recipe.flags, **given}
    return int(flags.get("context_length") or config.max_position_embeddings)


def _reserve_mb(flags: Given, gpu_mb: float) -> float:
    """With SGLang's defaults for what the flags leave open."""
    ranks = flags.get("tp_size", 1)
    prefill, rows = reserve.default_prefill_and_graph_rows(gpu_mb, ranks)
    sizes = flags.get("cuda_graph_bs_decode")
    rows = max(sizes) if sizes else flags.get("cuda_graph_max_bs_decode") or rows
    names = ("speculative_algorithm", "speculative_num_draft_tokens", "speculative_num_steps")
    algorithm, tokens, steps = map(flags.get, names)
    return reserve.runtime_reserve_mb(
        flags.get("chunked_prefill_size") or prefill,
        rows,
        ranks,
        gpu_mb=gpu_mb,
        attention_dp=flags.get("attn_dp_size", 1),
        window=reserve.window_tokens(algorithm, tokens, steps),
        requests=flags.get("max_running_requests"),
    )

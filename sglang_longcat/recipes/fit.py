"""Does a recipe suit a machine and a checkpoint, and if not, what is missing?

Owns: this comparison. The memory plan of a recipe is `memory`'s.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sglang_longcat.assets import NANO
from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import placement, sizing
from sglang_longcat.planning.plan import MemoryPlan
from sglang_longcat.planning.sizing import GIB
from sglang_longcat.recipes import Recipe, Suits
from sglang_longcat.recipes.memory import Given, Hardware, context_length, memory_plan

_SMALL = GIB  # weights of less than this are a small model


@dataclass(frozen=True)
class Fit:
    """missing: one phrase for each thing that the machine or checkpoint lacks; empty: it fits."""

    recipe: Recipe
    weight_format: str  # of the checkpoint
    missing: tuple[str, ...]
    gpus: int  # that the server would use
    plan: MemoryPlan | None = None
    context: int = 0  # tokens of the longest request


def model_of(config: LongcatConfig) -> str:
    """Suits.model of a checkpoint."""
    if config == LongcatConfig.from_dir(NANO):
        return "nano"
    return "tiny" if sizing.weight_bytes(config) < _SMALL else "lite"


def check(recipe: Recipe, here: Hardware, config: LongcatConfig, given: Given) -> Fit:
    """recipe: one of the catalogue, for this model (`model_of`)."""
    assert recipe.suits is not None
    gpus = _gpus(recipe.suits, given)
    missing = [*_checkpoint(recipe.suits, config), *_hardware(recipe.suits, here, gpus)]
    if missing or not gpus:
        return Fit(recipe, config.weight_format, tuple(missing), gpus)
    context = context_length(recipe, config, given)
    try:
        plan = memory_plan(recipe, here, config, given)
    except ValueError as error:  # a switch with a wrong value, or tables that fit nowhere
        return Fit(recipe, config.weight_format, (str(error).partition(". ")[0],), gpus)
    replicas = given.get("dp_size", 1)
    missing = [
        *_larger_gpu(recipe.suits, here),
        *_tokens(plan, here, given, recipe, context),
        *_host(plan, here, config, replicas),
    ]
    return Fit(recipe, config.weight_format, tuple(missing), gpus, plan, context)


def _gpus(suits: Suits, given: Given) -> int:
    if not {"tp_size", "dp_size"} & given.keys():
        return suits.gpus
    return int(given.get("tp_size", suits.gpus) * given.get("dp_size", 1)) if suits.gpus else 0


def _checkpoint(suits: Suits, config: LongcatConfig) -> Iterator[str]:
    if config.weight_format not in suits.checkpoint:
        yield f"is for {' or '.join(suits.checkpoint)}, the checkpoint is {config.weight_format}"


def _hardware(suits: Suits, here: Hardware, gpus: int) -> Iterator[str]:
    if not gpus and here.gpus:
        yield "is for machines without a GPU"
    if gpus > here.gpus:
        yield f"needs {gpus} GPU{'s' * (gpus > 1)}, this machine has {here.gpus or 'none'}"
    if not (gpus and here.gpus):
        return
    if suits.gpu and not any(re.search(rf"\b{family}\b", here.gpu) for family in suits.gpu):
        yield f"is for {' or '.join(suits.gpu)}, this GPU is {here.gpu}"
    if suits.gpu_memory > here.gib:
        yield f"needs {suits.gpu_memory:g} GiB of GPU memory, this GPU has {here.gib:.0f}"


def _larger_gpu(suits: Suits, here: Hardware) -> Iterator[str]:
    free = here.memory.gpu_free / GIB
    if here.gpus and free >= suits.below:
        yield f"is for less than {suits.below:g} GiB of free GPU memory, this GPU has {free:.0f}"


def _tokens(
    plan: MemoryPlan, here: Hardware, given: Given, recipe: Recipe, context: int
) -> Iterator[str]:
    lacking = (context - plan.kv_tokens) * plan.room.kv_bytes_per_token
    if lacking > 0:
        share = {**recipe.flags, **given}.get("mem_fraction_static") or 1
        free = here.memory.gpu_free / GIB
        needed = math.ceil(free + lacking / share / GIB)
        yield (
            f"needs {needed} GiB of free GPU memory for weights and one request of {context:,} "
            f"tokens, this GPU has {free:.0f}"
        )


def _host(plan: MemoryPlan, here: Hardware, config: LongcatConfig, replicas: int) -> Iterator[str]:
    """Replicas that --dp-size makes have a copy of the tables each."""
    needed = plan.host_tables * placement.HOST_MARGIN * replicas
    if needed > here.memory.host:
        narrower = _narrower_tables(needed / plan.weights.tables, here.memory.host, config)
        yield (
            f"needs {needed / GIB:.0f} GiB of host memory for the n-gram tables"
            f"{narrower}, {here.memory.host / GIB:.0f} are available"
        )


def _narrower_tables(copies: float, host: int, config: LongcatConfig) -> str:
    """The widest type of the tables, and its size, that would fit. copies: bytes of host memory for
    one byte of a rank's tables."""
    for dtype in ("fp8", "int4"):
        size = copies * sizing.table_bytes(config, dtype)
        if size <= host:
            return f" ({size / GIB:.0f} with LONGCAT_NGRAM_TABLE_DTYPE={dtype})"
    return ""

"""Why this recipe: one line for each thing that was compared.

Owns: these texts and their printing, on stderr. Stdout has the command alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import sizing
from sglang_longcat.planning.placement import HOST_MARGIN
from sglang_longcat.planning.sizing import GIB
from sglang_longcat.recipes.choose import goal_rank
from sglang_longcat.recipes.fit import Fit
from sglang_longcat.recipes.memory import Given, Hardware

Reason = tuple[str, str]  # what was compared, and the result


@dataclass(frozen=True)
class Mine:
    """What the user set: SGLang's flags, and the environment."""

    flags: Given
    switches: Mapping[str, str]


def of(
    fit: Fit, here: Hardware, config: LongcatConfig | None, mine: Mine, *, goal: str | None
) -> list[Reason]:
    """goal: None if the user named the recipe."""
    suits = fit.recipe.suits
    named = "as you named it" if goal is None else "chosen"
    lines = [("recipe", f"{fit.recipe.name}, {named}")]
    if suits is None:
        return [*lines, ("suits", "unknown: a file of your own"), *_yours(fit, mine)]
    lines += [("WARNING", phrase) for phrase in fit.missing]
    if goal is not None:
        lines += [("GPU", _gpu(fit, here)), ("goal", _goal(fit, goal))]
    if config is not None:
        gib = sizing.weight_bytes(config) / GIB
        lines.append(("checkpoint", f"{config.weight_format}, {gib:.1f} GiB"))
    lines += [("memory", text) for text in _memory(fit)]
    lines.append(("measured", suits.measured or "no: sizes are arithmetic"))
    return [*lines, *_yours(fit, mine)]


def _gpu(fit: Fit, here: Hardware) -> str:
    if not here.gpus:
        return "none"
    text = f"{fit.gpus} x {here.gpu}, {here.gib:.0f} GiB"
    if here.gpus > fit.gpus:
        text += f"; this machine has {here.gpus}"
    replicas = _replicas(fit, here)
    if replicas > 1:
        text += f": --dp-size {replicas} serves {replicas} replicas"
    return text


def _replicas(fit: Fit, here: Hardware) -> int:
    """For which GPUs and host memory suffice; each has its own n-gram tables."""
    if not fit.plan or not fit.plan.host_tables:
        return here.gpus // fit.gpus
    tables = fit.plan.host_tables * HOST_MARGIN
    return min(here.gpus // fit.gpus, int(here.memory.host // tables))


def _goal(fit: Fit, goal: str) -> str:
    assert fit.recipe.suits is not None
    if goal_rank(fit.recipe, goal) == 0:
        return goal
    return f"{fit.recipe.suits.goal[0]}: no recipe for {goal} fits"


def _memory(fit: Fit) -> Iterator[str]:
    if fit.plan is None:
        return
    plan = fit.plan
    weights = f"{plan.gpu_weights / GIB:.1f} GiB of weights on each GPU"
    if plan.tables == "host":
        weights += f", n-gram tables in {plan.host_tables / GIB:.1f} GiB of host memory"
    yield f"{weights}, {max(plan.kv_tokens, 0):,} tokens of KV cache"
    yield f"the longest request has {fit.context:,} tokens"


def _yours(fit: Fit, mine: Mine) -> Iterator[Reason]:
    """Flags and switches of the user, which win over the recipe's."""
    for name, value in mine.flags.items():
        text = f"--{name.replace('_', '-')} {value}"
        yield "yours", text + _instead(fit.recipe.flags.get(name), value)
    for name, value in mine.switches.items():
        if name in fit.recipe.switches:
            yield "yours", f"{name}={value}" + _instead(fit.recipe.switches[name], value)


def _instead(old: Any, value: Any) -> str:
    return "" if old in (None, value) else f", instead of the recipe's {old}"


def show(lines: Sequence[Reason]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for line in lines:
        table.add_row(*line)
    Console(stderr=True).print(table, highlight=False, markup=False)

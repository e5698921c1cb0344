"""The recipe that suits a machine, a checkpoint and a goal best.

Owns: the order of recipes that fit, and the error that says of each what is missing. What fits is
`fit`'s.
"""

from __future__ import annotations

from collections.abc import Iterable

from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import sizing
from sglang_longcat.planning.estimate import read_config
from sglang_longcat.recipes import Recipe, every
from sglang_longcat.recipes.fit import Fit, check, model_of
from sglang_longcat.recipes.memory import Given, Hardware

ON_CPU = (
    "This machine shows no GPU, and on a CPU only small checkpoints run:\n"
    "    sglang-longcat serve cpu-nano                     # LongCat-nano, in this package\n"
    "    sglang-longcat serve cpu-tiny --model-path DIR    # a small random checkpoint, made with\n"
    "    python -m sglang_longcat.testing tiny DIR"
)


class NoRecipe(ValueError):
    """None fits. The message says of each what is missing."""


def choose(here: Hardware, config: LongcatConfig | None, goal: str, given: Given) -> Fit:
    """The best of `compare`. goal: one of GOALS. Raises NoRecipe."""
    fits = compare(here, config, given)
    fit = best(fits, goal, given)
    if fit is None:
        raise NoRecipe(_explain(here, fits, config))
    return fit


def compare(here: Hardware, config: LongcatConfig | None, given: Given) -> list[Fit]:
    """All candidates for a checkpoint. config: None where none is named, which asks for the
    published model in any format. given: the user's own flags."""
    model = "lite" if config is None else model_of(config)
    return [
        check(recipe, here, config or published(weight_format), given)
        for weight_format in (sizing.FORMATS if config is None else (config.weight_format,))
        for recipe in candidates(model, weight_format)
    ]


def best(fits: Iterable[Fit], goal: str, given: Given) -> Fit | None:
    """Of those that fit, first come formats in the order of `sizing.FORMATS`, then recipes for the
    goal before balanced and other ones, then those that need no flag replaced, then those that use
    more GPUs, then those that are measured. None if none fits."""
    fitting = [fit for fit in fits if not fit.missing]
    return min(fitting, key=lambda fit: _rank(fit, goal, given), default=None)


def candidates(model: str, weight_format: str) -> list[Recipe]:
    """Those for a checkpoint that may be chosen; `model` is a value of Suits.model."""
    return [
        recipe
        for recipe in every()
        if (suits := recipe.suits) and suits.model == model and not suits.by_name
        if weight_format in suits.checkpoint
    ]


def published(weight_format: str) -> LongcatConfig:
    """config.json of the published model in a format of `sizing.FORMATS`."""
    return sizing.in_format(read_config(None), weight_format)


def goal_rank(recipe: Recipe, goal: str) -> int:
    """0: the recipe is for it; 1: it is balanced; 2: it is for another goal."""
    goals = recipe.suits.goal if recipe.suits else ()
    return 0 if goal in goals else 1 if "balanced" in goals else 2


def _rank(fit: Fit, goal: str, given: Given) -> tuple[int | bool, ...]:
    suits, flags = fit.recipe.suits, {"tp_size": 1, **fit.recipe.flags}
    return (
        sizing.FORMATS.index(fit.weight_format),
        goal_rank(fit.recipe, goal),
        sum(name in flags and flags[name] != value for name, value in given.items()),
        -fit.gpus,
        not (suits and suits.measured),
    )


def _explain(here: Hardware, fits: list[Fit], config: LongcatConfig | None) -> str:
    if config and not fits:
        return (
            f"no recipe is for {config.weight_format} checkpoints of this size; there are some for "
            f"{', '.join(sizing.FORMATS)}. Write one, and name it: sglang-longcat serve FILE.yaml"
        )
    if not here.gpus:
        return ON_CPU
    closest_first = sorted(fits, key=lambda fit: len(fit.missing))
    lines = [f"    {fit.recipe.name}: {'; '.join(fit.missing)}" for fit in closest_first]
    return (
        f"no recipe fits {here.gpus} x {here.gpu}:\n"
        + "\n".join(lines)
        + "\nName the closest one with flags of yours (sglang-longcat serve RECIPE --FLAG VALUE), "
        "or compare sizes: sglang-longcat estimate"
    )

"""`sglang-longcat serve`: chooses a recipe, says why, and becomes `sglang.launch_server`.

Owns: the command's arguments and the order of its steps. `flags` reads the user's SGLang flags,
`machine` says what there is to serve on, `command` builds what is run, and `reasons` prints why.
The choice is `recipes/choose.py`'s.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from sglang_longcat import env
from sglang_longcat.checkpoint.locate import locate
from sglang_longcat.config import LongcatConfig
from sglang_longcat.planning import arguments
from sglang_longcat.planning.roofline import GPUS
from sglang_longcat.recipes import GOALS, Recipe, every, find
from sglang_longcat.recipes.choose import choose, published
from sglang_longcat.recipes.fit import Fit, check
from sglang_longcat.recipes.memory import Given, Hardware

DESCRIPTION = (
    "Chooses a recipe for this machine and checkpoint, prints the command of the server with the "
    "reason of each choice, and runs it. RECIPE names one instead: a name or a YAML file of your "
    "own. Further flags go to SGLang and replace those of the recipe."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "sglang-longcat serve [RECIPE] [options] [SGLANG FLAG ...]"
    parser.description = DESCRIPTION
    parser.add_argument("--recipe", metavar="NAME", help="the same as RECIPE")
    parser.add_argument("--goal", choices=GOALS, help=f"default: {GOALS[0]}")
    parser.add_argument(
        "--model-path",
        "--model",
        type=arguments.model,
        help="directory or model; else the recipe's",
    )
    parser.add_argument("--print", action="store_true", help="run nothing")
    other = parser.add_argument_group("another machine", "plan for it, and run nothing")
    other.add_argument("--gpu", choices=GPUS, metavar="NAME", help=", ".join(GPUS))
    other.add_argument(
        "--gpus", type=arguments.positive, metavar="N", help="with --gpu; default: 1"
    )
    other.add_argument("--host-memory", type=arguments.gib, metavar="GIB", help="default: enough")


def run(args: argparse.Namespace, further: Sequence[str]) -> int:
    """further: RECIPE and SGLang's flags. Does not return if it starts the server. Raises
    ValueError or OSError with what is wrong and what to do."""
    from sglang_longcat.serve import command, flags, machine, reasons

    env.ngram_tables(), env.ngram_table_dtype()  # a wrong value is no recipe's fault
    name, words = _recipe_name(args, further)
    environment = dict(os.environ)  # before anything is set here for SGLang's import
    here = machine.described(args) if args.gpu else machine.detected(args)
    given = flags.read(words, on_cpu=not here.gpus)
    fit, config = _choice(args, name, here, given)
    if config is not None:
        flags.require_agreement(given, config)
    server = command.build(fit.recipe, args.model_path, words, given, environment)
    mine = reasons.Mine(given, environment)
    reasons.show(reasons.of(fit, here, config, mine, goal=None if name else _goal(args)))
    print(server.text, flush=True)
    if not (args.print or args.gpu):
        sys.stdout.flush()
        os.execvpe(server.words[0], server.words, server.environment)
    return 0


def _recipe_name(args: argparse.Namespace, further: Sequence[str]) -> tuple[str | None, list[str]]:
    """(the recipe's name, if one is named; SGLang's flags)."""
    words = list(further)
    if "--" in words:  # as a shell user may part our arguments from SGLang's
        words.remove("--")
    name = words.pop(0) if words and not words[0].startswith("-") else None
    if name and args.recipe and name != args.recipe:
        raise ValueError(f"{name} and --recipe {args.recipe}: expected one recipe; leave one out")
    name = name or args.recipe
    if name and args.goal:
        raise ValueError(
            f"--goal {args.goal} chooses a recipe, and {name} names one; leave one out"
        )
    return name, words


def _goal(args: argparse.Namespace) -> str:
    return args.goal or GOALS[0]


def _choice(
    args: argparse.Namespace, name: str | None, here: Hardware, given: Given
) -> tuple[Fit, LongcatConfig | None]:
    """(the recipe with what it lacks, the checkpoint's config or None if none is known)."""
    if name is None:
        config = _config(args.model_path) if args.model_path else None
        fit = choose(here, config, _goal(args), given)
        return fit, config or _of_recipe(fit.recipe)
    recipe = find(name)
    config = _config(args.model_path) if args.model_path else _of_recipe(recipe)
    if recipe.suits is None or config is None:
        return Fit(recipe, "", (), gpus=0), config
    return check(recipe, here, config, given), config


def _config(model: str) -> LongcatConfig:
    """Of --model-path: a directory, a downloaded model, or the name of a published one."""
    names = {recipe.model_path: recipe for recipe in every() if recipe.suits}
    if not Path(model).exists() and model in names:
        config = _of_recipe(names[model])
        assert config is not None
        return config
    return LongcatConfig.from_dir(locate(model))


def _of_recipe(recipe: Recipe) -> LongcatConfig | None:
    """Of the published model that a recipe serves."""
    if recipe.suits is None or recipe.model_path is None:
        return None
    return published(recipe.suits.checkpoint[0])

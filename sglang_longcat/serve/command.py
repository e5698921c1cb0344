"""The server's command line and environment.

Owns: what a recipe's server is started with. SGLang merges: its flags on the command line win over
those of `--config`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sglang_longcat.assets import nano
from sglang_longcat.cpu.environment import CPU_ENV, tp_env
from sglang_longcat.recipes import Recipe
from sglang_longcat.recipes.memory import Given


@dataclass(frozen=True)
class Command:
    """switches: the variables that the recipe needs, with the user's values where they are set."""

    words: list[str]
    switches: Mapping[str, str]
    environment: Mapping[str, str]

    @property
    def text(self) -> str:
        """For a shell."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.switches.items()]
        return "\n".join([*exports, shlex.join(self.words)])


def build(
    recipe: Recipe,
    model: str | None,
    words: Sequence[str],
    given: Given,
    environment: Mapping[str, str],
) -> Command:
    """model: --model-path; words: SGLang's flags as typed, and `given` as read. environment: the
    user's. Raises ValueError if there is no model to serve."""
    model = model or recipe.model_path or _default_model(recipe)
    start = [sys.executable, "-m", "sglang.launch_server", "--config", str(recipe.file)]
    path = [] if model == recipe.model_path else ["--model-path", model]
    needed = dict(recipe.switches)
    if recipe.on_cpu:
        ranks = int(given.get("tp_size") or recipe.flags.get("tp_size", 1))
        needed |= {**CPU_ENV, **tp_env(ranks)}
    switches = {name: environment.get(name, value) for name, value in needed.items()}
    return Command([*start, *path, *words], switches, {**environment, **switches})


def _default_model(recipe: Recipe) -> str:
    if recipe.suits and recipe.suits.model == "nano":
        return str(nano())
    raise ValueError(
        f"{recipe.name} names no model; expected --model-path DIR. A small random checkpoint is "
        "made with: python -m sglang_longcat.testing tiny DIR"
    )

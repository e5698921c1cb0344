"""Recipes: complete sets of server flags for one machine and goal, and the choice between them.

NAME.yaml is one of SGLang's own `--config` files, NAME.env beside it has the switches that it
needs. `catalogue.toml` says what each recipe suits, `fit` compares this with a machine and a
checkpoint, `memory` plans its memory there, and `choose` takes the best. Owns: reading these files.
Needs no SGLang.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DIRECTORY = Path(__file__).parent
GOALS = ("balanced", "latency", "throughput", "long-context")


@dataclass(frozen=True)
class Suits:
    """An entry of catalogue.toml, which explains the fields."""

    gpus: int
    checkpoint: tuple[str, ...]
    goal: tuple[str, ...]
    gpu: tuple[str, ...] = ()
    gpu_memory: float = 0
    below: float = math.inf
    model: str = "lite"
    measured: str = ""
    by_name: str = ""


@dataclass(frozen=True)
class Recipe:
    """flags: by SGLang's names of its settings ("tp_size"). switches: environment variables.
    suits: None for a file that is not in the catalogue."""

    name: str
    file: Path
    flags: Mapping[str, Any]
    switches: Mapping[str, str]
    suits: Suits | None

    @property
    def on_cpu(self) -> bool:
        return self.flags.get("device") == "cpu"

    @property
    def model_path(self) -> str | None:
        return self.flags.get("model_path")


class UnknownRecipe(ValueError):
    """No recipe and no file has this name."""


@cache
def catalogue() -> dict[str, Suits]:
    """By name of the recipe."""
    entries = tomllib.loads((DIRECTORY / "catalogue.toml").read_text())
    return {name: _suits(fields) for name, fields in entries.items()}


def _suits(fields: Mapping[str, Any]) -> Suits:
    values: dict[str, Any] = {
        name.replace("-", "_"): tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    return Suits(**values)


@cache
def every() -> tuple[Recipe, ...]:
    """Those of the catalogue, in its order."""
    return tuple(_read(DIRECTORY / f"{name}.yaml", suits) for name, suits in catalogue().items())


def find(name: str) -> Recipe:
    """A recipe of the catalogue, with or without `.yaml`, or a YAML file. Raises UnknownRecipe."""
    stem = name.removesuffix(".yaml")
    known = next((recipe for recipe in every() if recipe.name == stem), None)
    if known is not None:
        return known
    if Path(name).is_dir():
        raise UnknownRecipe(f"{name} is a directory, no recipe; did you mean --model-path {name}?")
    if not Path(name).is_file():
        names = ", ".join(recipe.name for recipe in every())
        raise UnknownRecipe(f"no recipe {name!r}; expected a YAML file, or one of: {names}")
    return _read(Path(name).resolve(), None)


def _read(file: Path, suits: Suits | None) -> Recipe:
    flags = yaml.safe_load(file.read_text()) or {}
    if not isinstance(flags, dict):
        raise ValueError(f"{file}: expected SGLang's flags, one `name: value` a line")
    named = {str(name).replace("-", "_"): value for name, value in flags.items()}
    return Recipe(file.stem, file, named, _switches(file.with_suffix(".env")), suits)


def _switches(file: Path) -> dict[str, str]:
    """NAME=VALUE lines, the form of `docker run --env-file`."""
    lines = file.read_text().splitlines() if file.is_file() else []
    pairs = (line.partition("=") for line in lines if "=" in line and line[0].isalpha())
    return {name: value for name, _, value in pairs}

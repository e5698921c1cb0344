"""The command line that benchmarks of a recipe's server share, and their way through the arms."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import yaml

from benchmarks.serving.arms import DRAFTS
from sglang_longcat import recipes


def new_parser(program: str, description: str | None, *, timeout: float) -> argparse.ArgumentParser:
    """With the options that say which server is started and where its figures go."""
    parser = server_parser(program, description, timeout=timeout)
    parser.add_argument("recipe", type=recipe_file, help="a name or a YAML file")
    parser.add_argument("--arms", default="ours", help="a list; see above")
    return parser


def server_parser(
    program: str, description: str | None, *, timeout: float
) -> argparse.ArgumentParser:
    """Without the recipe and its arms, for a benchmark that chooses them by itself."""
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,  # SGLang's flags must not be taken for ours
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument(
        "--timeout", type=float, default=timeout, help="seconds until it must be ready"
    )
    return parser


def recipe_file(name: str) -> Path:
    try:
        return recipes.find(name).file
    except recipes.UnknownRecipe as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(parser: argparse.ArgumentParser, arms: Collection[str]) -> argparse.Namespace:
    """With `flags` of the recipe, `arms` as a list, and in `server_flags` what it does not know."""
    args = parse_known(parser)
    args.flags = yaml.safe_load(args.recipe.read_text()) or {}
    args.arms = args.arms.split(",")
    if unknown := set(args.arms) - set(arms):
        parser.error(f"--arms {', '.join(unknown)}: expected some of {', '.join(arms)}")
    without = any(arm.startswith("no-drafts") for arm in args.arms)
    if without and not any(name.startswith(DRAFTS) for name in args.flags):
        parser.error(f"{args.recipe.stem} has no drafts: leave the arm no-drafts out")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


def parse_known(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """With what the parser does not know in `server_flags`."""
    args, server_flags = parser.parse_known_args()
    args.server_flags = server_flags
    return args


def each(arms: list[str], measure: Callable[[str], None]) -> list[str]:
    """Measure every arm. Returns those that failed, with the reason printed: the next may do."""
    failed = []
    for arm in arms:
        try:
            measure(arm)
        except (SystemExit, RuntimeError, subprocess.CalledProcessError) as error:
            print(f"{arm}: {error}", flush=True)
            failed.append(arm)
    return failed


def finish(failed: list[str]) -> None:
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}; the reason is above")

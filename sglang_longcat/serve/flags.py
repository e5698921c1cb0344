"""The user's own SGLang flags, read by SGLang's own parser: spellings, types and choices are its.

Owns: the error about a flag that SGLang does not know. Without flags SGLang is not imported, which
takes some five seconds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from sglang_longcat.config import LongcatConfig
from sglang_longcat.doctor import quiet
from sglang_longcat.planning import agreement
from sglang_longcat.recipes.memory import Given

_POSITIVE = (
    "tp_size",
    "dp_size",
    "nnodes",
    "context_length",
    "max_running_requests",
    "max_total_tokens",
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(
            f"{message}. Such flags go to SGLang: python -m sglang.launch_server --help lists its "
            "flags, and sglang-longcat serve --help ours."
        )


def read(words: Sequence[str], *, on_cpu: bool) -> dict[str, Any]:
    """The settings that the words give, by SGLang's names ("tp_size"). Raises ValueError."""
    if not words:
        return {}
    with quiet.capture():
        parser = _sglang_parser(on_cpu=on_cpu)
    given = vars(parser.parse_args(list(words)))
    if "config" in given:
        raise ValueError("--config: a recipe is such a file; name yours: serve FILE.yaml")
    _refuse_impossible(given)
    return given


def _refuse_impossible(given: dict[str, Any]) -> None:
    """A plan would take these as they are, and promise what no server has."""
    for name in _POSITIVE:
        value = given.get(name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    rank, nodes = given.get("node_rank", 0), given.get("nnodes", 1)
    if not 0 <= rank < nodes:
        raise ValueError(f"--node-rank {rank}: expected 0 to {nodes - 1}, by --nnodes {nodes}")
    fraction = given.get("mem_fraction_static")
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"--mem-fraction-static {fraction}: expected a part of 1, say 0.9")


def require_agreement(given: Given, config: LongcatConfig) -> None:
    """Raises ValueError for flags that the model's config.json contradicts. Attention with replicas
    of its own deals its heads out to fewer ranks than --tp."""
    ranks = [] if given.get("enable_dp_attention") else [given.get("tp_size", 1)]
    context = given.get("context_length")
    agreement.check(config, context=context, ranks=ranks, context_flag="--context-length")


def _sglang_parser(*, on_cpu: bool) -> argparse.ArgumentParser:
    """Without defaults: what was not given is not in the result."""
    if on_cpu:  # SGLang reads these variables while it is imported
        from sglang_longcat.cpu.environment import CPU_ENV

        os.environ.update({**CPU_ENV, **os.environ})
    from sglang.srt.server_args import ServerArgs

    from sglang_longcat import tool_parser

    tool_parser.register()  # a value of --tool-call-parser
    parser = _Parser(prog="sglang", add_help=False)
    ServerArgs.add_cli_args(parser)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
    return parser

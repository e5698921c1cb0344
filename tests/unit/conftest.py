"""SGLang's own parser of a recipe and of flags.

Owns: that fixture, for the tests of recipes and of what starts them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sglang_longcat import tool_parser

Parse = Callable[..., tuple[argparse.ArgumentParser, list[str], Any]]


@pytest.fixture(scope="session")
def parse() -> Parse:
    """parse(file, *flags): (SGLang's parser, the words it was given, what it made of them)."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    tool_parser.register()
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    ServerArgs.add_cli_args(parser)

    def run(file: Path, *flags: str) -> tuple[argparse.ArgumentParser, list[str], Any]:
        command = ["--config", str(file), "--model-path", "anything", *flags]
        argv = ConfigArgumentMerger(parser).merge_config_with_args(command)
        return parser, argv, parser.parse_known_args(argv)

    return run

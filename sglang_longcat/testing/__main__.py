"""`python -m sglang_longcat.testing tiny DIR [--seed 0 --layers 2 ...]`, `... check DIR`.

Owns: the command line, with one option per field of TinyOptions. `tiny` writes the checkpoint, and
`checkpoint.check` checks it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from sglang_longcat.checkpoint.check import check_checkpoint
from sglang_longcat.config import LongcatConfig
from sglang_longcat.testing.tiny import TinyOptions, write_tiny


def main(argv: Sequence[str] | None = None) -> int:
    args = vars(_parser().parse_args(argv))
    command, path = args.pop("command"), args.pop("dir")
    try:
        if command == "tiny":
            write_tiny(path, TinyOptions(**args))
        check_checkpoint(path, LongcatConfig.from_dir(path))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sglang_longcat.testing")
    commands = parser.add_subparsers(dest="command", required=True)
    tiny = commands.add_parser("tiny", help="write a small random checkpoint")
    check = commands.add_parser("check", help="compare a checkpoint with its config.json")
    for command in (tiny, check):
        command.add_argument("dir", type=Path)
    for field in fields(TinyOptions):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            action = argparse.BooleanOptionalAction
            tiny.add_argument(flag, action=action, default=field.default)
        else:
            tiny.add_argument(flag, type=int, default=field.default, help=f"{field.default}")
    return parser


if __name__ == "__main__":
    sys.exit(main())

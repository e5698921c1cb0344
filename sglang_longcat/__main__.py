"""`sglang-longcat doctor | estimate | draft-vocabulary | template`, or `python -m sglang_longcat`.

Owns: the command line. The work is in `doctor`, `planning/estimate.py`,
`speculation/draft_vocabulary.py` and `checkpoint`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sglang_longcat import __version__, doctor
from sglang_longcat.checkpoint import CHAT_TEMPLATE
from sglang_longcat.planning import estimate
from sglang_longcat.speculation import draft_vocabulary


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sglang-longcat", description="LongCat-Flash-Lite")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sizes = commands.add_parser("estimate", help="memory and shortest decode step, by GPU")
    estimate.add_arguments(sizes)
    sizes.set_defaults(run=estimate.run)
    health = commands.add_parser("doctor", help="would the server start here, and if not, why")
    doctor.add_arguments(health)
    health.set_defaults(run=doctor.run)
    drafts = commands.add_parser("draft-vocabulary", help="file for --speculative-token-map")
    draft_vocabulary.add_arguments(drafts)
    drafts.set_defaults(run=draft_vocabulary.run)
    template = commands.add_parser("template", help="path of a chat template, for --chat-template")
    template.set_defaults(run=_print_template)
    return parser


def _print_template(args: argparse.Namespace) -> int:
    print(CHAT_TEMPLATE)
    return 0


if __name__ == "__main__":
    sys.exit(main())

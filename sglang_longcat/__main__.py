"""`sglang-longcat serve | doctor | estimate | quantize | ...`, or `python -m sglang_longcat`.

Owns: the command line. The work is in `serve`, `doctor`, `planning/estimate.py`,
`speculation/draft_vocabulary.py`, `quantiser/command.py` and `checkpoint`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sglang_longcat import __version__, doctor, serve
from sglang_longcat.checkpoint import CHAT_TEMPLATE
from sglang_longcat.planning import estimate
from sglang_longcat.quantiser import command as quantize
from sglang_longcat.speculation import draft_vocabulary


def main(argv: Sequence[str] | None = None) -> int:
    args, further = _parser().parse_known_args(argv)
    if further and args.run is not serve.run:
        args.parser.error(f"unrecognized arguments: {' '.join(further)}")
    try:
        return int(serve.run(args, further) if args.run is serve.run else args.run(args))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sglang-longcat", description="LongCat-Flash-Lite")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # No abbreviations: SGLang's --host would be taken for --host-memory.
    server = commands.add_parser("serve", help="start a server", allow_abbrev=False)
    serve.add_arguments(server)
    server.set_defaults(run=serve.run, parser=server)
    sizes = commands.add_parser("estimate", help="memory and shortest decode step, by GPU")
    estimate.add_arguments(sizes)
    sizes.set_defaults(run=estimate.run, parser=sizes)
    health = commands.add_parser("doctor", help="would the server start here, and if not, why")
    doctor.add_arguments(health)
    health.set_defaults(run=doctor.run, parser=health)
    drafts = commands.add_parser("draft-vocabulary", help="file for --speculative-token-map")
    draft_vocabulary.add_arguments(drafts)
    drafts.set_defaults(run=draft_vocabulary.run, parser=drafts)
    smaller = commands.add_parser("quantize", help="a 4-bit checkpoint from the bf16 one")
    quantize.add_arguments(smaller)
    smaller.set_defaults(run=quantize.run, parser=smaller)
    template = commands.add_parser("template", help="path of a chat template, for --chat-template")
    template.set_defaults(run=_print_template, parser=template)
    return parser


def _print_template(args: argparse.Namespace) -> int:
    print(CHAT_TEMPLATE)
    return 0


if __name__ == "__main__":
    sys.exit(main())

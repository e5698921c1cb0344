"""Compares another version of SGLang with the contract of this plugin, and tries to serve with it.

    python -m ci.check_sglang 0.5.22        # in the repository's root, after `make setup`

Three steps: install the version into a scratch environment beside the locked one; compare every
attribute of `sglang_longcat/host/attributes.py` with it, and print what moved as a Markdown table;
if nothing moved, serve the small random checkpoint on the CPU and answer one chat request. Exits
with 1 if an attribute moved or the server failed, so that a nightly job can run it. Owns: the order
of the steps and the report.
"""

from __future__ import annotations

import argparse
import sys

from ci.check_sglang import scratch
from ci.check_sglang.report import table
from ci.setup_env import say


def main() -> None:
    args = parse_args()
    environment = scratch.environment(args.version)
    moved = scratch.moved(environment)
    print(table(args.version, moved), flush=True)
    if moved:
        sys.exit(f"{len(moved)} attributes differ: the server was not tried. Adapt them first.")
    if args.no_smoke:
        return
    say("serving the small random checkpoint on the CPU")
    if problem := scratch.serve_once(environment, args.version, args.port):
        sys.exit(f"no attribute moved, but {problem}")
    print(f"SGLang {args.version}: the server started and answered.")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ci.check_sglang", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("version", help="of SGLang, as on PyPI: 0.5.22")
    parser.add_argument("--no-smoke", action="store_true", help="compare only")
    parser.add_argument("--port", type=int, default=30000, help="of the server that is tried")
    return parser.parse_args()


if __name__ == "__main__":
    main()

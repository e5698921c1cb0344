"""Accuracy gates, of LongCat-nano and of the published checkpoint.

    python -m ci.accuracy --suite nano                                 starts a server on the CPU
    python -m ci.accuracy --suite nano --base-url URL --dtype bfloat16 nano is served at URL
    python -m ci.accuracy --suite nano --dtype bfloat16 --kv-cache-dtype fp8_e4m3
    python -m ci.accuracy --suite gsm8k,mmlu,math500 --base-url URL    needs lm-eval
    python -m ci.accuracy --record                                     writes nano's thresholds

Prints a Markdown table; --out NAME also writes NAME.json and NAME.md. The exit status is 1 if a
gate fails. Owns: the command line. nano.py and suites.py measure, thresholds.toml has the limits,
report.py reads the limits, and record.py rewrites them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ci.accuracy.report import Row, judge, markdown, thresholds, write


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.record:
        from ci.accuracy.record import record

        record()
        return 0
    names = args.suite.split(",")
    rows: list[Row] = []
    if "nano" in names:
        rows += _nano(args.base_url, dtype=args.dtype, kv_cache=args.kv_cache_dtype)
        names.remove("nano")
    if names:
        rows += _suites(names, args)
    print(markdown(rows))
    if args.out:
        write(rows, args.out, about={"command": " ".join(sys.argv), "server": args.base_url})
    return 0 if all(row.passed for row in rows) else 1


def end_process(status: int) -> NoReturn:
    """End now, without the interpreter's teardown. lm-eval reads its data through pyarrow, whose
    pool of threads may wait for ever as the process ends: 1 of 1,800 processes that read JSON from
    a Python object (apache/arrow#33975, pyarrow 26.0.1). Remove this when that is closed."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _nano(base_url: str | None, *, dtype: str, kv_cache: str) -> list[Row]:
    """The gates of LongCat-nano. Also prints how each known mistake would fail them."""
    from ci.accuracy.nano import MISTAKES, Oracle, Text, measure, measure_mistake, over_http
    from longcat_kernels import kv_rows
    from sglang_longcat.assets import nano
    from tests.harness import server

    path = nano()
    text = Text.of(path)
    oracle = Oracle.of(path, text)
    if base_url:
        measured = measure(over_http(base_url), text, oracle)
    else:
        pool: dict[str, Any] = {"kv_cache_dtype": kv_cache, "max_total_tokens": 16384}
        with server(path, dtype=dtype, **pool) as running:
            measured = measure(over_http(running.base_url), text, oracle)
    limits = thresholds("nano", dtype)
    cache = kv_rows.rounded if kv_cache == "fp8_e4m3" else None
    for name, semantics in MISTAKES.items():
        wrong = measure_mistake(path, text, oracle, semantics, cache)
        print(f"\nWith a known mistake, {name}:\n")
        print(markdown(judge(wrong, limits, prefix="mistake")))
    print(f"\nThe server, {dtype}, KV cache {kv_cache}:\n")
    return judge(measured, limits, prefix=f"nano {dtype}")


def _suites(names: list[str], args: argparse.Namespace) -> list[Row]:
    from ci.accuracy.suites import run

    if not args.base_url:
        sys.exit("these suites ask a running server: give --base-url http://HOST:PORT")
    return run(names, base_url=args.base_url, limit=args.limit, concurrency=args.concurrency)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="nano", help="names with commas between them")
    parser.add_argument("--base-url", help="a running server, without /v1")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8_e4m3"), default="auto")
    parser.add_argument("--limit", type=int, help="questions of each suite, for a quick look")
    parser.add_argument("--concurrency", type=int, default=32, help="requests at a time")
    parser.add_argument("--out", type=Path, help="report files, without their endings")
    parser.add_argument("--record", action="store_true", help="measure nano, write thresholds.toml")
    return parser


if __name__ == "__main__":
    _status = main()
    if "pyarrow" in sys.modules:
        end_process(_status)
    sys.exit(_status)

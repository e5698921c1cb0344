"""Acceptance length of speculative decoding on LongCat-nano, and proof that outputs stay the same.

    python -m ci.acceptance --prompts 24 --tokens 64        on the CPU, fp32, greedy, 3 steps
    python -m ci.acceptance --prompts 200 --tokens 128 --modes all --out FILE.json

The prompts are the beginnings of nano's held-out windows. Prints one JSON line per mode
(`modes.MODES`): the acceptance length (tokens per step, at most steps + 1), the share of steps that
accepted at least i drafts, and how many outputs equal those without speculation. Exits with 1 if an
output differs. Owns: the command line, the requests and the numbers. `modes` has the engine flags.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import commit
from ci.acceptance.modes import MODES, Mode, reduced
from sglang_longcat.assets import nano
from tests.harness import engine

LENGTHS = (32, 64, 96, 128, 160, 192, 224, 256)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--modes", default="mtp,word", help=f"all, or of {','.join(MODES)}")
    parser.add_argument(
        "--token-map", type=Path, nargs="*", default=[], help="two further modes each"
    )
    parser.add_argument("--out", type=Path, help="JSON file for all of it")
    args = parser.parse_args(arguments)
    modes = MODES if args.modes == "all" else {name: MODES[name] for name in args.modes.split(",")}
    prompts = beginnings(args.prompts)
    plain = functools.cache(lambda ends: outputs(ask(prompts, args.tokens, Mode(ignore_eos=ends))))
    rows = []
    for name, mode in {**modes, **reduced(args.token_map)}.items():
        started = time.monotonic()
        replies = ask(prompts, args.tokens, mode)
        pairs = zip(outputs(replies), plain(mode.ignore_eos), strict=True)
        equal = sum(output == expected for output, expected in pairs)
        row = {"mode": name, "equal": equal, **acceptance(replies)}
        rows.append({**row, "seconds": round(time.monotonic() - started)})
        print(json.dumps(rows[-1]), flush=True)
        if args.out:
            args.out.write_text(json.dumps({**origin(args), "modes": rows}, indent=1) + "\n")
    return 0 if all(row["equal"] == len(prompts) for row in rows) else 1


def beginnings(count: int) -> list[list[int]]:
    windows = json.loads((nano() / "held_out.json").read_text())["windows"]
    return [
        windows[i % len(windows)][: LENGTHS[i // len(windows) % len(LENGTHS)]] for i in range(count)
    ]


def ask(prompts: list[list[int]], tokens: int, mode: Mode) -> list[dict[str, Any]]:
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": mode.ignore_eos}
    flags = {"max_total_tokens": 16384, **mode.flags}
    with engine(nano(), timeout=600, env=mode.env, **flags) as llm:
        results: list[dict[str, Any]] = llm.generate(
            input_ids=prompts,
            sampling_params=sampling,
            timeout=3600,
        )
    return results


def outputs(replies: list[dict[str, Any]]) -> list[list[int]]:
    return [reply["output_ids"] for reply in replies]


def acceptance(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbers over all verify steps of all requests. A request that ends with its first token has
    no verify step."""
    counts = [0] * 16
    for reply in replies:
        histogram = reply["meta_info"].get("spec_correct_drafts_histogram", ())
        for accepted, steps in enumerate(histogram):
            counts[accepted] += steps
    steps = sum(counts)
    least = [sum(counts[i:]) / steps for i in range(1, 16) if sum(counts[i:])]
    retractions = sum(reply["meta_info"].get("num_retractions", 0) for reply in replies)
    return {
        "prompts": len(replies),
        "steps": steps,
        "acceptance_length": round(1 + sum(i * n for i, n in enumerate(counts)) / steps, 3),
        "at_least": [round(share, 3) for share in least],
        "retractions": retractions,
    }


def origin(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": f"python -m ci.acceptance --prompts {args.prompts} --tokens {args.tokens}"
        f" --modes {args.modes}" + "".join(f" --token-map {file.name}" for file in args.token_map),
        "checkpoint": "LongCat-nano, fp32, CPU, greedy",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


if __name__ == "__main__":
    sys.exit(main())

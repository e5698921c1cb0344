"""How many tokens a speculative step yields on LongCat-nano, and that they are the same tokens.

    python -m ci.acceptance --prompts 24 --tokens 64        on the CPU, fp32, greedy, 3 steps
    python -m ci.acceptance --prompts 200 --tokens 128 --modes all --out FILE.json

Prompts are the beginnings of nano's held-out windows. Prints one JSON line per mode
(`modes.MODES`): acceptance length (tokens a step, at most steps + 1), the share of steps
that accepted at least i drafts, and how many outputs equal those without speculation. Exits 1 if
one does not.
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

from benchmarks.engine import commit
from ci.acceptance.modes import MODES, Mode, nextn
from sglang_longcat.assets import nano
from tests.harness import engine

LENGTHS = (32, 64, 96, 128, 160, 192, 224, 256)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--modes", default="mtp,word", help=f"all, or of {','.join(MODES)}")
    parser.add_argument("--token-map", type=Path, nargs="*", default=[], help="further modes")
    parser.add_argument("--out", type=Path, help="JSON file for all of it")
    args = parser.parse_args(arguments)
    modes = MODES if args.modes == "all" else {name: MODES[name] for name in args.modes.split(",")}
    maps = {one.stem: Mode(nextn(speculative_token_map=str(one))) for one in args.token_map}
    prompts = beginnings(args.prompts)
    plain = functools.cache(lambda ends: outputs(ask(prompts, args.tokens, Mode(ignore_eos=ends))))
    found = []
    for name, mode in {**modes, **maps}.items():
        started = time.monotonic()
        replies = ask(prompts, args.tokens, mode)
        pairs = zip(outputs(replies), plain(mode.ignore_eos), strict=True)
        equal = sum(one == want for one, want in pairs)
        row = {"mode": name, "equal": equal, **acceptance(replies)}
        found.append({**row, "seconds": round(time.monotonic() - started)})
        print(json.dumps(found[-1]), flush=True)
        if args.out:
            args.out.write_text(json.dumps({**origin(args), "modes": found}, indent=1) + "\n")
    return 0 if all(row["equal"] == len(prompts) for row in found) else 1


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
    return [one["output_ids"] for one in replies]


def acceptance(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all verifications of all requests; one that ends with its first token has none."""
    counts = [0] * 16
    for one in results:
        for accepted, steps in enumerate(one["meta_info"].get("spec_correct_drafts_histogram", ())):
            counts[accepted] += steps
    steps = sum(counts)
    least = [sum(counts[i:]) / steps for i in range(1, 16) if sum(counts[i:])]
    retractions = sum(one["meta_info"].get("num_retractions", 0) for one in results)
    return {
        "prompts": len(results),
        "steps": steps,
        "acceptance_length": round(1 + sum(i * n for i, n in enumerate(counts)) / steps, 3),
        "at_least": [round(share, 3) for share in least],
        "retractions": retractions,
    }


def origin(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": f"python -m ci.acceptance --prompts {args.prompts} --tokens {args.tokens}"
        f" --modes {args.modes}",
        "checkpoint": "LongCat-nano, fp32, CPU, greedy",
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
    }


if __name__ == "__main__":
    sys.exit(main())

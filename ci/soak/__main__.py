"""Thousands of random requests against real servers, each answer compared with the oracle.

    python -m ci.soak --requests 300 --seed 1

There is one CPU server per chunk size, each in another scheduling mode (MODES) that retracts
requests and resumes them. Requests come in waves, and the server is idle between two waves. Prints
one JSON line at the end. Exits with 1, and prints what reproduces the fault to stderr, if
  - an answer is not the oracle's, an aborted answer is not its beginning, or one is missing;
  - a server retracted nothing, or its small pool was never full (the soak would prove nothing);
  - something still runs after the last answer, or the server does not answer any more;
  - a process grew by more than GROWTH_MB after the first third.

Owns: the servers and the report. `client` sends requests, `random_requests` draws them and judges
the answers, and `tally` counts.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ci.soak.client import Client
from ci.soak.random_requests import Draw
from ci.soak.tally import GROWTH_MB, Tally
from sglang_longcat.reference import ReferenceModel
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import HarnessError, server

# The pool holds two of the longest requests, and SGLang admits requests as if outputs were short.
# It must often retract requests.
CROWDED = {
    "max_total_tokens": 400,
    "max_running_requests": 24,
    "schedule_conservativeness": 0.01,
}
# SGLang 0.5.23 crashes if the pool is full when a chunk needs room, which can happen while others
# decode. So this pool is large, and pauses retract requests: /pause_generation, mode "retract".
MIXED = {"enable_mixed_chunk": True, "max_total_tokens": 3000, "max_running_requests": 12}
# SGLang preempts if it lacks request slots, not if it lacks memory: few slots, a large pool.
PRIORITIES = {
    "enable_priority_scheduling": True,
    "priority_scheduling_preemption_threshold": 0,
    "max_total_tokens": 1000,
    "max_running_requests": 4,
}
PAGES = {**CROWDED, "disable_overlap_schedule": True, "page_size": 4}
MODES: list[dict[str, Any]] = [CROWDED, MIXED, PRIORITIES, PAGES]
SMALL = TinyOptions(
    layers=1, hidden=384, heads=4, q_lora=128, ffn=256, experts=8, zero_experts=4, topk=3, mtp=False
)
RETRACTED = r"Retract requests\. #retracted_reqs: (\d+)"
SHOWN = 3  # faults on stderr
LOG_TAIL = 8000  # characters of the server's log in the first of them


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything. Returns 0 if there was no fault."""
    args = parse(arguments)
    torch.set_num_threads(1)  # the engine uses the other core
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        path = args.checkpoint or write_tiny(Path(directory) / "tiny", SMALL)
        oracle = ReferenceModel.from_checkpoint(path)
        tallies = []
        for number, (chunk, mode) in enumerate(zip(args.chunk, itertools.cycle(MODES))):
            count = args.requests * (number + 1) // len(args.chunk)
            count -= args.requests * number // len(args.chunk)
            flags = {"chunked_prefill_size": chunk, **mode}
            draw = Draw(f"{args.seed}-{number}", vocab=oracle.config.vocab_size)
            tallies.append(soak(path, oracle, draw, count, flags))
    report = {
        "requests": args.requests,
        "seed": args.seed,
        "chunk": args.chunk,
        "totals": dict(sum((tally.counts for tally in tallies), Counter())),
        "growth_limit_mb": GROWTH_MB,
        "servers": [tally.report() for tally in tallies],
        "versions": {name: version(name) for name in ("sglang-longcat", "sglang", "torch")},
        "wall_s": round(time.monotonic() - begin),
    }
    print(json.dumps(report), flush=True)
    faults = [fault for tally in tallies for fault in tally.faults]
    for fault in faults[:SHOWN]:
        print(f"seed {args.seed}: {json.dumps(fault)}", file=sys.stderr)
    return 1 if faults else 0


def soak(
    path: Path, oracle: ReferenceModel, draw: Draw, count: int, flags: dict[str, Any]
) -> Tally:
    """Send `count` requests to one server. The tally records every fault."""
    tally = Tally(flags)
    try:
        with server(path, timeout=600, **flags) as http:
            asyncio.run(Client(http.base_url, oracle, tally).run(draw, count))
            tally.counts["retracted"] = sum(map(int, re.findall(RETRACTED, http.log)))
            if tally.faults:
                tally.faults[0]["log"] = http.log[-LOG_TAIL:]
    except HarnessError as error:
        tally.add_fault(str(error))
    tally.require_load()
    return tally


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="default: a tiny one, written first")
    parser.add_argument("--chunk", type=int, nargs="+", default=[16, 7, 3, 64])
    args = parser.parse_args(arguments)
    if args.requests < len(args.chunk):
        parser.error(f"--requests {args.requests}: expected at least one for each --chunk")
    return args


if __name__ == "__main__":
    sys.exit(main())

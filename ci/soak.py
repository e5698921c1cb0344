"""Thousands of random requests against real engines, each answer compared with the oracle.

    python ci/soak.py --requests 300 --seed 1

One CPU server per chunk size, each with another scheduling mode (MODES) and a KV pool that is too
small, so that requests are thrown out and come back. Requests arrive in waves; the server is idle
between two. Prints one JSON line at the end, and exits 1 with what reproduces it when
  an answer is not the oracle's, or an aborted one not its beginning; a request has no answer;
  no request was retracted, or none preempted where priorities are on; a request is still running
  after the last answer; or a process grew by more than GROWTH_MB after the first third.

`soak_requests.py` owns the requests and the verdict on an answer; this file, all the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import torch

from soak_requests import Draw, Request, fault

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from harness import HarnessError, Server, server
from sglang_longcat.checkpoint.tiny import TinyOptions, write_tiny
from sglang_longcat.reference import ReferenceModel

# The pool holds two of the longest requests, and SGLang admits as if outputs were short: it often
# has to throw requests out. It then admits fewer until it has been idle: hence many small waves.
CROWDED = {
    "max_total_tokens": 400,
    "max_running_requests": 24,
    "schedule_conservativeness": 0.01,
}
# SGLang 0.5.23 dies when a chunk finds the pool full, as it can where others decode meanwhile. So
# this pool is large, and requests are thrown out by pauses: /pause_generation, mode "retract".
MIXED = {"enable_mixed_chunk": True, "max_total_tokens": 3000, "max_running_requests": 12}
# SGLang preempts when it lacks slots, not when it lacks memory.
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
WAVE = 25
GROWTH_MB = 64
RETRACTED = r"Retract requests\. #retracted_reqs: (\d+)"
SHOWN = 3  # faults on stderr
PATIENCE = 300  # seconds until a request counts as lost


@dataclass
class Tally:
    """What one server was asked and what it did; `faults` is empty when all was right."""

    flags: dict[str, Any]
    counts: Counter[str] = field(default_factory=Counter)
    memory_mb: list[dict[str, int]] = field(default_factory=list)  # after each wave
    faults: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0

    def add_fault(self, what: str, request: Request | None = None, **found: Any) -> None:
        asked = {"request": asdict(request)} if request else {}
        self.faults.append({"fault": what, "flags": self.flags, **asked, **found})

    def growth_mb(self) -> dict[str, int]:
        """Per process, from the end of the first third to the last wave."""
        third, last = self.memory_mb[len(self.memory_mb) // 3], self.memory_mb[-1]
        return {name: last[name] - third.get(name, 0) for name in last}

    def require_pressure(self) -> None:
        """Adds a fault for each thing that this soak exists to do and that did not happen."""
        if self.faults:
            return
        if not self.counts["thrown_out"]:
            self.add_fault("no request was thrown out: the load is too light")
        if "schedule_conservativeness" in self.flags and not self.counts["retracted"]:
            self.add_fault("the pool was never full: it is too large for this load")
        if max(self.growth_mb().values()) > GROWTH_MB:
            self.add_fault(f"memory grew by {self.growth_mb()} MB, at most {GROWTH_MB} expected")

    @property
    def mixed(self) -> bool:
        return "enable_mixed_chunk" in self.flags

    def report(self) -> dict[str, Any]:
        return {
            "flags": self.flags,
            "counts": dict(sorted(self.counts.items())),
            "memory_mb": self.memory_mb[-1:],
            "growth_mb": self.growth_mb() if self.memory_mb else {},
            "seconds": round(self.seconds),
            "faults": len(self.faults),
        }


class Soak:
    """One server under `count` requests."""

    def __init__(self, http: Server, oracle: ReferenceModel, tally: Tally) -> None:
        self._http, self._oracle, self._tally = http, oracle, tally
        self._judge = ThreadPoolExecutor(max_workers=1)  # beside the two cores' engine

    async def run(self, draw: Draw, count: int) -> None:
        begin, (final,) = time.monotonic(), draw.wave(1)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            self._http.base_url, timeout=timeout, connector=connector
        ) as self._session:
            for done in range(0, count, WAVE):
                wave = draw.wave(min(WAVE, count - done))
                times = (1, 2) if self._tally.mixed else ()
                await asyncio.gather(
                    *(self._one(request) for request in wave),
                    *(self._pause(after=seconds) for seconds in times),
                )
                self._progress(done + len(wave), count, begin)
                if self._tally.faults:
                    return
            await self._require_idle()
            await self._one(replace(final, ending="", delay=0))
        self._tally.seconds = time.monotonic() - begin

    async def _one(self, request: Request) -> None:
        """Ask, perhaps abort or hang up, judge."""
        await asyncio.sleep(request.delay)
        abort = asyncio.create_task(self._abort(request)) if request.ending == "abort" else None
        hang_up = request.patience if request.ending == "disconnect" else None
        try:
            answers = await asyncio.wait_for(self._ask(request), timeout=hang_up)
        except (TimeoutError, aiohttp.ClientError, ValueError) as error:
            if hang_up is not None and isinstance(error, TimeoutError):
                self._tally.counts["disconnected"] += 1
            else:
                self._tally.add_fault(f"no answer: {error!r}", request)
            return
        finally:
            if abort is not None:
                await abort
        await self._check(request, answers)

    async def _ask(self, request: Request) -> list[dict[str, Any]]:
        async with self._session.post("/generate", json=request.body()) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}: {await response.text()}")
            if request.stream:
                return [_last_event(await response.text())]
            answer = await response.json()
            return answer if isinstance(answer, list) else [answer]

    async def _abort(self, request: Request) -> None:
        await asyncio.sleep(request.patience)
        async with self._session.post("/abort_request", json={"rid": request.rid}):
            pass

    async def _pause(self, after: float) -> None:
        """Throws every running request out, chunks in the middle included, and goes on."""
        await asyncio.sleep(after)
        for step, body in (("pause", {"mode": "retract"}), ("continue", {})):
            async with self._session.post(f"/{step}_generation", json=body) as response:
                if response.status != 200:
                    self._tally.add_fault(f"{step}_generation: {await response.text()}")

    async def _check(self, request: Request, answers: list[dict[str, Any]]) -> None:
        counts = self._tally.counts
        counts["answered"] += 1
        if len(answers) != request.copies:
            self._tally.add_fault(f"{len(answers)} samples", request)
        for answer in answers:
            meta, output = answer["meta_info"], answer["output_ids"]
            counts["tokens"] += len(output)
            counts["cached_tokens"] += meta.get("cached_tokens", 0)
            counts["thrown_out"] += meta.get("num_retractions", 0)
            started = "" if output else " before the first token"
            counts[f"ended by {meta['finish_reason']['type']}{started}"] += 1
            loop = asyncio.get_running_loop()
            wrong = await loop.run_in_executor(self._judge, fault, request, answer, self._oracle)
            if wrong:
                self._tally.add_fault(wrong, request, output=output, meta=meta)

    async def _require_idle(self) -> None:
        """A request that nobody waits for any more must be gone too: SGLang then flushes."""
        async with self._session.post("/flush_cache", params={"timeout": "30"}) as response:
            if response.status != 200:
                self._tally.add_fault(f"not idle at the end: {await response.text()}")

    def _progress(self, done: int, count: int, begin: float) -> None:
        self._tally.memory_mb.append(memory_mb())
        seconds, counts = time.monotonic() - begin, self._tally.counts
        print(
            f"{self._tally.flags}: {done}/{count} requests, {seconds:.0f} s, "
            f"{counts['thrown_out']} thrown out, {len(self._tally.faults)} faults",
            file=sys.stderr,
            flush=True,
        )


def _last_event(stream: str) -> dict[str, Any]:
    """The last of a stream's events; each before it must be its beginning, and unfinished."""
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    if events.count("[DONE]") != 1 or events[-1] != "[DONE]" or len(events) < 2:
        raise ValueError(f"a stream that ends with {events[-2:]}")
    *early, last = map(json.loads, events[:-1])
    for event in early:
        output = event["output_ids"]
        if event["meta_info"]["finish_reason"] or last["output_ids"][: len(output)] != output:
            raise ValueError(f"a stream that took back {event}, then ended with {last}")
    return last


def memory_mb() -> dict[str, int]:
    """Resident memory of the server's processes, by name: all below the one that forks them."""
    parents: dict[int, int] = {}
    found: dict[int, tuple[str, int]] = {}
    for file in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = [line.partition(":\t") for line in file.read_text().splitlines()]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        status = {name: value.strip() for name, _, value in lines}
        parents[int(status["Pid"])] = int(status["PPid"])
        if "VmRSS" in status:
            found[int(status["Pid"])] = status["Name"], int(status["VmRSS"].split()[0]) // 1024
    sizes: Counter[str] = Counter()
    for pid, (name, size) in found.items():
        if os.getpid() in _ancestors(parents.get(pid, 0), parents):
            sizes[name] += size
    return dict(sizes)


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs everything; 0 when nothing was wrong."""
    args = parse(arguments)
    torch.set_num_threads(1)  # the engine has the other core
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
    for one in faults[:SHOWN]:
        print(f"seed {args.seed}: {json.dumps(one)}", file=sys.stderr)
    return 1 if faults else 0


def soak(
    path: Path, oracle: ReferenceModel, draw: Draw, count: int, flags: dict[str, Any]
) -> Tally:
    """`count` requests to one server; whatever goes wrong is in the tally."""
    tally = Tally(flags)
    try:
        with server(path, timeout=600, **flags) as http:
            asyncio.run(Soak(http, oracle, tally).run(draw, count))
            tally.counts["retracted"] = sum(map(int, re.findall(RETRACTED, http.log)))
            if tally.faults:
                tally.faults[-1]["log"] = http.log[-4000:]
    except HarnessError as error:
        tally.add_fault(str(error))
    tally.require_pressure()
    return tally


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, help="default: a tiny one, written first")
    parser.add_argument("--chunk", type=int, nargs="+", default=[16, 7, 3, 64])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

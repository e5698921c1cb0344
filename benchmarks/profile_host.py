"""Where the scheduler's Python code spends a step: a host profile of a running engine.

    python -m benchmarks.profile_host --arms spec --work decode,prefill --engine '{...}' --out DIR

Arms, sizes and weights are those of `benchmarks/engine.py`. "decode" repeats one cached prompt of
--input tokens with --output answer tokens at the batch size of --batch; "prefill" repeats new
prompts with one answer token. Meanwhile py-spy samples the scheduler's main thread, waiting
included, so the shares are of wall time. It prints the functions with most own and cumulative time,
in ms of a step: a forward of the target (of all drafts of a window with speculation), or a prompt.

py-spy is SGLang's own dependency; it must be in PATH or beside the interpreter. If it is missing or
may not read another process (ptrace), the message says so and torch's profiler records Python
calls instead (--recorder torch does at once). That makes each call slower, so read the order, not
the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks import engine as engine_benchmark
from benchmarks import host_frames, profile_step
from longcat_kernels.lite import VOCAB

SCHEDULER = "sglang::scheduler"  # how SGLang names the process
RATE = 250  # samples a second
TRACED = 8  # repeats that torch's profiler records


def main() -> None:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--arms", default="spec")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--input", type=int, default=4096)
    parser.add_argument("--output", type=int, default=512, help="tokens of an answer, for decode")
    parser.add_argument("--work", default="decode,prefill")
    parser.add_argument("--seconds", type=int, default=10, help="of sampling")
    parser.add_argument("--recorder", choices=("py-spy", "torch"), default="py-spy")
    parser.add_argument("--native", action="store_true", help="py-spy: C functions too, slower")
    parser.add_argument("--engine", default="{}", help="sglang.Engine arguments, JSON")
    parser.add_argument("--config", default="{}", help="changes to lite_config.json, JSON")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", type=Path, help="directory for the stacks that py-spy recorded")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        profile_arm(args)
    else:
        engine_benchmark.run_arms("benchmarks.profile_host", args.arms)


def profile_arm(args: argparse.Namespace) -> None:
    batches = engine_benchmark.parse_batches(args.batch, args.input)
    engine = engine_benchmark.start_engine(args, batches, output=args.output)
    for size, length in batches:
        for kind in args.work.split(","):
            vocabulary = json.loads(args.config).get("vocab_size", VOCAB)
            prompts = engine_benchmark.random_prompts(size, length, random.Random(1), vocabulary)
            work = Work(engine, prompts, args.output if kind == "decode" else 1)
            for _ in range(3):  # compiles kernels
                work.once()
            frames = record(work, f"{args.arm}-{kind}-{size}x{length}", args)
            step_ms = 1e3 * work.seconds / work.steps
            print(f"HOST {args.arm} {kind} {size} x {length}: {work.steps} steps, {step_ms:.3f} ms")
            print(host_frames.table(frames, rows=args.rows, step_ms=step_ms), flush=True)
    engine.shutdown()


class Work:
    """One batch, repeated: the same cached prompts, or, with one answer token, new ones."""

    def __init__(self, engine: Any, prompts: list[list[int]], output: int) -> None:
        self.engine, self._prompts, self._output = engine, prompts, output
        self.start_counting()

    def start_counting(self) -> None:
        self.steps, self.seconds = 0, 0.0

    def once(self) -> None:
        begin = time.perf_counter()
        if self._output == 1:
            for prompt in self._prompts:  # another first token: nothing of it is cached
                prompt.insert(0, prompt.pop())
        sampling = {"temperature": 0, "max_new_tokens": self._output, "ignore_eos": True}
        answers = self.engine.generate(input_ids=self._prompts, sampling_params=sampling)
        self.steps += max(forwards(answer["meta_info"]) for answer in answers)
        self.seconds += time.perf_counter() - begin


def forwards(meta: dict[str, Any]) -> int:
    """Forwards of the target for an answer: verify windows with speculation, else its tokens."""
    return int(meta.get("spec_verify_ct") or meta["completion_tokens"])


def record(work: Work, name: str, args: argparse.Namespace) -> host_frames.Frames:
    work.start_counting()
    if args.recorder == "py-spy":
        with tempfile.TemporaryDirectory() as directory:
            stacks = (args.out or Path(directory)) / f"{name}.stacks.txt"
            stacks.parent.mkdir(parents=True, exist_ok=True)
            if sample(work.once, stacks, seconds=args.seconds, native=args.native):
                return host_frames.from_stacks(stacks.read_text().splitlines())
        work.start_counting()
    return trace(work)


def sample(once: Callable[[], None], stacks: Path, *, seconds: int, native: bool) -> bool:
    """Repeat `once` while py-spy writes `stacks`. False, with the reason printed, if it cannot."""
    beside = Path(sys.executable).with_name("py-spy")
    program = shutil.which("py-spy") or (str(beside) if beside.exists() else None)
    if program is None:
        print("py-spy is neither in PATH nor beside the interpreter; torch's profiler records")
        return False
    command = [program, "record", "--pid", str(scheduler_pid()), "--duration", str(seconds)]
    command += ["--rate", str(RATE), "--format", "raw", "--output", str(stacks)]
    command += ["--idle", "--threads", "--function", *(["--native"] if native else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None:
        once()
    said = process.communicate()[0]
    if process.returncode or not stacks.exists():
        print(f"py-spy failed ({process.returncode}): {said.strip()}\ntorch's profiler records")
        return False
    return True


def scheduler_pid() -> int:
    """Of the first rank's scheduler, a child of this process. Raises RuntimeError without one."""
    for child in psutil.Process().children(recursive=True):
        if child.cmdline() and child.cmdline()[0].startswith(SCHEDULER):
            return int(child.pid)
    raise RuntimeError(f"no child process is called {SCHEDULER}*; is the engine running?")


def trace(work: Work) -> host_frames.Frames:
    with tempfile.TemporaryDirectory() as directory:
        work.engine.start_profile(
            activities=["CPU"], with_stack=True, record_shapes=False, output_dir=directory
        )
        for _ in range(TRACED):
            work.once()
        work.engine.stop_profile()
        return host_frames.from_trace(profile_step.read_events(Path(directory)))


if __name__ == "__main__":
    main()

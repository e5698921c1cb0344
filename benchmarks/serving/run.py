"""One run of SGLang's own serving benchmark against a running server, as `launch/bench.sh` does it.

Owns: its command line, and which of its figures a row of the report has.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving import log

# Of a row: the benchmark's own names.
FIGURES = {
    "tok_s": "output_throughput",
    "tpot_ms": "median_tpot_ms",
    "tpot_p99_ms": "p99_tpot_ms",
    "ttft_ms": "median_ttft_ms",
    "accept_length": "accept_length",
    "seconds": "duration",
    "completed": "completed",
}


@dataclass(frozen=True)
class Load:
    """`prompts` requests of which `users` run at once; lengths in tokens."""

    users: int
    prompts: int
    input: int
    output: int


def parse_loads(spec: str, *, input: int, output: int) -> list[Load]:
    """`1,200@400` -> users and prompts. Without `@`: four times the users, at least 8."""
    pairs = [item.partition("@") for item in spec.split(",")]
    return [
        Load(int(users), int(prompts or max(8, 4 * int(users))), input, output)
        for users, _, prompts in pairs
    ]


def benchmark_command(load: Load, *, port: int, model: Path, results: Path) -> list[str]:
    """The prompts are sent as token ids, so that each has exactly `load.input` tokens."""
    options = {
        "--backend": "sglang",
        "--base-url": f"http://127.0.0.1:{port}",
        "--tokenizer": model,
        "--dataset-name": "random-ids",
        "--random-range-ratio": 1,
        "--random-input-len": load.input,
        "--random-output-len": load.output,
        "--num-prompts": load.prompts,
        "--max-concurrency": load.users,
        "--seed": load.users,
        "--output-file": results,
    }
    words = [str(word) for option in options.items() for word in option]
    program = [sys.executable, "-m", "sglang.benchmark.serving"]
    return [*program, *words, "--tokenize-prompt", "--flush-cache", "--disable-tqdm"]


def measure(load: Load, *, port: int, model: Path, results: Path, log_file: Path) -> dict[str, Any]:
    """Run it. `results` gets one more line of SGLang's. Raises CalledProcessError if it fails, and
    RuntimeError if a request does."""
    command = benchmark_command(load, port=port, model=model, results=results)
    begin = log_file.stat().st_size
    subprocess.run(command, check=True)
    said = log_file.read_bytes()[begin:].decode(errors="replace")
    raw = json.loads(results.read_text().splitlines()[-1])
    if raw["completed"] != load.prompts:
        raise RuntimeError(f"{raw['completed']} of {load.prompts} requests were answered: {raw}")
    row: dict[str, Any] = {"users": load.users, "prompts": load.prompts}
    row |= {name: raw[source] for name, source in FIGURES.items()}
    return row | {"steady_tok_s": log.steady_rate(said), "command": ["python", *command[1:]]}

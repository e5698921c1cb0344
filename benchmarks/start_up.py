"""Seconds of each phase of a start: full-size block-FP8 engine, cold and warm caches.

    python -m benchmarks.start_up --out start-up.json
    python -m benchmarks.start_up --arms cold-parallel,warm-parallel --engine '{"tp_size": 2}'

An arm starts one engine in a process of its own. cold: all cache folders are empty. warm: those
that the cold arm before it filled. -parallel: with LONGCAT_PARALLEL_COMPILE=1. All arms have
SGLANG_JIT_DEEPGEMM_PRECOMPILE=0, because SGLang's own precompilation takes minutes more. Weights
are dummy, so the phase "weights" is shorter than with a checkpoint, and hides less of a
compilation. Graphs are captured for SGLang's sizes up to --batch.

Phases end with a line of the log: python (imports, processes), weights, KV cache, kernels (ours,
and DeepGEMM's if the start waits for them), graphs, ready (the engine returns), answer (the first
request). The run stops if the log lacks a line, or does not name the plugin's model class.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine import (
    arm_environment,
    check_class,
    generate,
    random_prompts,
    start_engine,
    versions,
)
from benchmarks.serving.model import FP8_CONFIG

ARMS = ("cold", "warm", "cold-parallel", "warm-parallel")
# What ends each phase: the first line that matches, or the last. A draft model loads its weights
# behind the target's graphs, so all of it counts as "graphs".
ENDS = (
    ("python", "first", r"Load weight begin"),
    ("weights", "first", r"Load weight end\."),
    ("KV cache", "first", r"Memory pool end\."),
    ("kernels", "first", r"Capture .* (?:CUDA|CPU) graph begin\."),
    ("graphs", "last", r"Capture .* (?:CUDA|CPU) graph end\."),
    ("ready", "first", r"^engine up in "),
    ("answer", "first", r"^first answer$"),
)
NOTES = re.compile(r"DeepGEMM: .*|Triton kernels: .*|Capture .* graph end\..*")
# Every cache of compiled code that an engine fills; HOME has those that no variable moves.
CACHES = {
    "HOME": "home",
    "XDG_CACHE_HOME": "home/.cache",
    "SGLANG_CACHE_DIR": "sglang",
    "SGLANG_DG_CACHE_DIR": "sglang/deep_gemm",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TVM_FFI_CACHE_DIR": "tvm",
    "CUDA_CACHE_PATH": "cuda",
}
Line = tuple[float, str]  # seconds since the process started, and the text


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.child:
        serve_once(args)
        return
    report: dict[str, Any] = {"engine": args.engine, "batch": args.batch, "versions": versions()}
    with tempfile.TemporaryDirectory(prefix="start-up-") as caches:
        for arm in args.arms.split(","):
            report[arm] = start(arm, Path(caches), sys.argv[1:] if argv is None else argv)
            if args.out:  # after each arm, so that one that fails loses its own row only
                args.out.write_text(json.dumps(report, indent=1))
    print(table({arm: report[arm] for arm in args.arms.split(",")}))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--batch", type=int, default=256, help="requests of the largest graph")
    parser.add_argument("--engine", default="{}", help="sglang.Engine arguments, JSON")
    parser.add_argument("--out", type=Path, help="write everything as JSON to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if unknown := set(args.arms.split(",")) - set(ARMS):
        parser.error(f"--arms {','.join(sorted(unknown))}: expected some of {', '.join(ARMS)}")
    args.arm, args.config = "longcat", json.dumps(FP8_CONFIG)
    return args


def start(arm: str, caches: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Starts an engine in its own process. Returns the seconds of each phase, and notable lines."""
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.start_up", *argv, "--child"],
        env=environment(arm, caches),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines: list[Line] = []
    for line in process.stdout:
        lines.append((time.monotonic() - begin, line.rstrip()))
        print(f"[{arm}] {lines[-1][0]:7.2f} {lines[-1][1]}", flush=True)
    check_class("\n".join(text for _, text in lines), process.wait(), "longcat")
    notes = [found.group() for _, text in lines if (found := NOTES.search(text))]
    return {"seconds": phases(lines), "notes": notes}


def environment(arm: str, caches: Path) -> dict[str, str]:
    """Arms of the same kind share folders, so that the second one finds them warm."""
    speed, _, parallel = arm.partition("-")
    folder = caches / (parallel or "serial")
    if speed == "warm" and not folder.exists():
        sys.exit(f"{arm}: no warm caches, expected the arm {arm.replace('warm', 'cold')} before it")
    folder.mkdir(exist_ok=speed == "warm")
    return {
        **arm_environment("longcat"),
        **{name: str(folder / path) for name, path in CACHES.items()},
        "PYTHONUSERBASE": site.getuserbase(),  # packages installed there, in spite of another HOME
        "LONGCAT_PARALLEL_COMPILE": "1" if parallel else "0",
        "SGLANG_JIT_DEEPGEMM_PRECOMPILE": "0",
        "PYTHONUNBUFFERED": "1",
    }


def phases(lines: Iterable[Line]) -> dict[str, float]:
    """Seconds of each phase, and their sum. ValueError if the log has no line that ends one."""
    lines, begin, seconds = list(lines), 0.0, {}
    for name, which, pattern in ENDS:
        ends = [moment for moment, text in lines if re.search(pattern, text)]
        if not ends:
            raise ValueError(f"phase {name}: no line of the log matches {pattern!r}")
        end = ends[0] if which == "first" else ends[-1]
        seconds[name] = round(end - begin, 2)
        begin = end
    return {**seconds, "total": round(begin, 2)}


def table(report: dict[str, dict[str, Any]]) -> str:
    """Markdown, one row for each arm, in seconds."""
    names = [*(name for name, _, _ in ENDS), "total"]
    rows = [["arm", *names], ["---"] * (1 + len(names))]
    for arm, row in report.items():
        rows.append([arm, *(f"{row['seconds'][name]:.1f}" for name in names)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def serve_once(args: argparse.Namespace) -> None:
    """The child: starts the engine, answers one request, ends it."""
    import random

    for path in CACHES:
        Path(os.environ[path]).mkdir(parents=True, exist_ok=True)
    engine = start_engine(args, [(args.batch, 4096)], 96)
    generate(engine, random_prompts(1, 1024, random.Random(1)), 8)
    print("first answer", flush=True)
    engine.shutdown()


if __name__ == "__main__":
    main()

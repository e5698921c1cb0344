"""Decode and prefill speed of a full-size engine, ours against SGLang's in-tree model, in one run.

    python -m benchmarks.engine --batch 1,8,30 --engine '{"tp_size": 1}' --out results.json
    python -m benchmarks.engine --arms in-tree,device,host --host 1,30,400,1@250000

Each arm runs in its own process on the same machine. in-tree is SGLang's model (LONGCAT_DISABLE=1).
The others are ours, with the n-gram tables where the plugin puts them (longcat), on the GPU
(device) or in pinned host memory (host). spec is host with 3 steps of MTP drafting; its acceptance
is simulated (3.15 tokens per step), because random weights accept nothing. spec-device is the same
with the tables on the GPU. prefill-graph is host with LONGCAT_PREFILL_GRAPH. fp8-rows is host with
an FP8 KV cache, and fa3 is what to compare it with: --arms fa3,fp8-rows
--batch 30,8@65536,1@250000 --engine '{"context_length": 262144}'.
Ours choose mem_fraction_static themselves. SGLang's choice for in-tree is too small to start on one
H200, so in-tree gets 0.95.

Weights are dummy with spread routing (sglang_longcat.testing.dummy_routing), and the sizes are
those of sglang_longcat/checkpoint/lite_config.json. A batch is SIZE or SIZE@INPUT. Per batch:
  prefill tok/s = batch * input / time of prompts that are not cached
  TPOT          = (time of 1+N tokens - time of 1) / N with the prompts cached; median of --repeat
  steady tok/s  = the scheduler's own figure for its last INTERVAL steps; median of --repeat. It
                  leaves out the start and the end of a batch, which are longer on a busy host
  taken_gib     = memory of each GPU that is in use and was not before the engine started, by NVML
  pinned_gib    = host memory that the log says was pinned for the n-gram tables
The run stops if the log of an arm does not name the model class that the arm is to measure.
LONGCAT_GPU_MEMORY_MIB=N measures a GPU of N MiB (sglang_longcat.testing.smaller_gpu).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import commit
from sglang_longcat import env
from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.testing.engine_flags import nextn


@dataclass(frozen=True)
class Arm:
    """Environment and engine arguments. `module`: the module of the model class that must run."""

    env: dict[str, str]
    engine: dict[str, Any] = field(default_factory=dict)
    module: str = "sglang_longcat.models.longcat_flash"


HOST = {"LONGCAT_NGRAM_TABLES": "host"}
SIMULATED = {
    "SGLANG_SIMULATE_ACC_LEN": "3.15",
    "SGLANG_SIMULATE_ACC_TOKEN_MODE": "real-draft-token",
}
ARMS = {
    "in-tree": Arm(
        {"LONGCAT_DISABLE": "1"}, {"mem_fraction_static": 0.95}, "sglang.srt.models.longcat_flash"
    ),
    "longcat": Arm({}),
    "device": Arm({"LONGCAT_NGRAM_TABLES": "device"}),
    "host": Arm(HOST),
    "fa3": Arm(HOST, {"attention_backend": "fa3"}),
    "fp8-rows": Arm(HOST, {"attention_backend": "fa3", "kv_cache_dtype": "fp8_e4m3"}),
    "spec": Arm({**HOST, **SIMULATED}, nextn(3)),
    "spec-device": Arm({"LONGCAT_NGRAM_TABLES": "device", **SIMULATED}, nextn(3)),
    "prefill-graph": Arm(
        {**HOST, "LONGCAT_PREFILL_GRAPH": "1"}, {"cuda_graph_max_bs_prefill": 2048}
    ),
}
INTERVAL = 16  # decode steps between two figures of the scheduler
LARGE = 200_000  # input tokens of a batch; a larger batch is prefilled only once
# The in-tree class needs a model_type that SGLang 0.5.23 knows, and a number of draft layers.
IN_TREE_CONFIG = {"model_type": "longcat_flash", "num_nextn_predict_layers": 1}


def main() -> None:
    args = parse()
    if args.arm:
        measure(args)
        return
    report: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.engine", *sys.argv[1:]]),
        "engine": json.loads(args.engine),
        "versions": versions(),
        "results": {},
    }
    for arm in args.arms.split(","):
        report["results"][arm] = run_arm(arm)
        if args.out:  # after each arm, so that an arm that fails loses its own rows only
            Path(args.out).write_text(json.dumps(report, indent=1))
    print_table(report["results"])


def parse() -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--batch", default="1,8,30", help="of every arm that has none of its own")
    for arm in ARMS:
        parser.add_argument(f"--{arm}", help=f"batches of the arm {arm}")
    parser.add_argument("--input", type=int, default=4096)
    parser.add_argument("--output", type=int, default=96)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--engine", default="{}", help="sglang.Engine arguments, JSON")
    parser.add_argument("--config", default="{}", help="changes to lite_config.json, JSON")
    parser.add_argument("--arms", default="in-tree,longcat")
    parser.add_argument("--out", help="write everything as JSON to this file")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_arm(arm: str) -> list[dict[str, Any]]:
    """Run one arm in its own process. Returns one row per batch."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.engine", *sys.argv[1:], "--arm", arm],
        env=arm_environment(arm),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(f"[{arm}] {line}", end="", flush=True)
        lines.append(line)
    log = "".join(lines)
    check_class(log, process.wait(), arm)
    check_gpu_memory(log, env.gpu_memory_mib())
    rows = [json.loads(line[7:]) for line in lines if line.startswith("RESULT ")]
    return [row | {"pinned_gib": pinned_gib(log)} for row in rows]


def check_class(log: str, code: int, arm: str) -> None:
    """Ends this run if the process failed, or did not run the model class of its arm."""
    module = ARMS[arm].module
    classes = re.findall(r"dummy routing: \d+ routers of (\S+)", log)
    if code or not classes or not all(name.startswith(module) for name in classes):
        sys.exit(f"{arm}: exit {code}, model classes {classes}, expected {module}*")


def check_gpu_memory(log: str, mib: int | None) -> None:
    """Ends this run if the GPU should look smaller and did not: SGLang passes over a plugin that
    the installed package does not announce."""
    if mib and f"smaller GPU: {mib} MiB" not in log:
        sys.exit(f"the GPU does not look as if it had {mib} MiB: install this checkout again.")


def pinned_gib(log: str) -> float:
    """Of all ranks together, by the log of `sglang_longcat.ngram.host_memory`."""
    return sum(map(float, re.findall(r"pinned ([\d.]+) GiB of host memory", log)))


def run_arms(module: str, arms: str) -> None:
    """This command line again as `python -m module ... --arm ARM`, in a process for each arm."""
    for arm in arms.split(","):
        command = [sys.executable, "-m", module, *sys.argv[1:], "--arm", arm]
        subprocess.run(command, env=arm_environment(arm), check=True)


def arm_environment(arm: str) -> dict[str, str]:
    return {
        **os.environ,
        "LONGCAT_DUMMY_ROUTING": "1",
        "SGLANG_PLUGINS": "longcat,longcat_dummy_routing,longcat_smaller_gpu",
        **ARMS[arm].env,
    }


def measure(args: argparse.Namespace) -> None:
    batches = parse_batches(vars(args)[args.arm.replace("-", "_")] or args.batch, args.input)
    idle = used_gib(args)
    engine = start_engine(args, batches, args.output)
    tokens = engine.get_server_info()["max_total_num_tokens"]
    print(f"{tokens:,} tokens of KV cache", flush=True)
    for size, length in batches:
        row = measure_batch(engine, size, length, args)
        used = used_gib(args)
        row |= {"kv_tokens": tokens, "free_gib": free_gib(), "used_gib": used}
        row["taken_gib"] = [round(after - before, 2) for after, before in zip(used, idle)]
        print("RESULT " + json.dumps(row), flush=True)
    engine.shutdown()


def start_engine(args: argparse.Namespace, batches: list[tuple[int, int]], output: int) -> Any:
    """Start the engine of `args.arm`, with room for `batches` and graphs up to the largest one."""
    import sglang

    longest = max(length for _, length in batches) + output
    begin = time.time()
    engine = sglang.Engine(
        **{
            "model_path": model_directory(args),
            "load_format": "dummy",
            "skip_tokenizer_init": True,
            "max_running_requests": max(size for size, _ in batches),
            "cuda_graph_max_bs_decode": max(size for size, _ in batches),
            "context_length": max(32768, 2 * longest if longest < 131072 else 262144),
            "random_seed": 1,
            "skip_server_warmup": True,
            "log_level": "info",
            "decode_log_interval": INTERVAL,
            **ARMS[args.arm].engine,
            **json.loads(args.engine),
        }
    )
    print(f"engine up in {time.time() - begin:.1f} s", flush=True)
    return engine


def parse_batches(spec: str, length: int) -> list[tuple[int, int]]:
    """`1,8@512` -> requests and their input tokens."""
    pairs = [item.partition("@") for item in spec.split(",")]
    return [(int(size), int(own or length)) for size, _, own in pairs]


def free_gib() -> float:
    """Free memory of the first GPU. NVML reports it, as in `used_gib`, because a CUDA context would
    take half a GiB of what the engine has left."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    total = torch.cuda.get_device_properties(0).total_memory
    return round((total - torch.cuda.device_memory_used(0)) / 2**30, 2)


def used_gib(args: argparse.Namespace) -> list[float]:
    """Used memory of each GPU of the engine, by all processes together, as NVML reports it."""
    import torch

    if not torch.cuda.is_available():
        return []
    ranks = json.loads(args.engine).get("tp_size", 1)
    return [round(torch.cuda.device_memory_used(rank) / 2**30, 2) for rank in range(ranks)]


def model_directory(args: argparse.Namespace) -> str:
    config = json.loads(PUBLISHED_CONFIG.read_text()) | json.loads(args.config)
    directory = tempfile.mkdtemp(prefix="lite-")
    changes = IN_TREE_CONFIG if args.arm == "in-tree" else {}
    Path(directory, "config.json").write_text(json.dumps(config | changes))
    return directory


def measure_batch(engine: Any, size: int, length: int, args: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(f"{size}@{length}")  # no prompt begins as one of another batch
    large = size * length > LARGE

    def seconds(batch: list[list[int]], tokens: int) -> float:
        begin = time.perf_counter()
        generate(engine, batch, tokens)
        return time.perf_counter() - begin

    if not large:
        seconds(random_prompts(size, length, rng), 8)  # compiles every kernel of this shape
    prefills, batch = [], []
    for _ in range(1 if large else args.repeat):
        batch = random_prompts(size, length, rng)
        prefills.append(seconds(batch, 1))
    seconds(batch, 8)  # compiles the kernels of other shapes, which a cached prefix needs
    tpots, rates = [], []
    for _ in range(args.repeat):
        whole = seconds(batch, 1 + args.output)
        rates.append(steady_rate(engine))
        tpots.append((whole - seconds(batch, 1)) / args.output * 1e3)
    tpot = statistics.median(tpots)
    return {
        "batch": size,
        "input": length,
        "prefill_tok_s": size * length / statistics.median(prefills),
        "prefill_s": statistics.median(prefills),
        "tpot_ms": tpot,
        "tok_s": size / tpot * 1e3,
        "steady_tok_s": statistics.median(rates),
        "tpot_all_ms": tpots,
        "steady_all_tok_s": rates,
        "prefill_all_s": prefills,
    }


def steady_rate(engine: Any) -> float:
    """Tokens per second over the last INTERVAL decode steps, summed over data-parallel ranks."""
    states = engine.get_server_info()["internal_states"]
    return float(sum(state["last_gen_throughput"] for state in states))


def random_prompts(
    size: int, length: int, rng: random.Random, vocabulary: int = 131000
) -> list[list[int]]:
    return [[rng.randrange(10, vocabulary) for _ in range(length)] for _ in range(size)]


def generate(engine: Any, prompts: list[list[int]], tokens: int) -> None:
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    engine.generate(input_ids=prompts, sampling_params=sampling)


def versions() -> dict[str, str]:
    import sglang
    import torch

    return {
        "sglang": sglang.__version__,
        "torch": torch.__version__,
        "gpu": f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}",
        "commit": commit(),
    }


def print_table(results: dict[str, list[dict[str, Any]]]) -> None:
    """A Markdown table, with the speed-up over the first arm at the same batch (above 1:
    faster)."""
    base = {(row["batch"], row["input"]): row for row in next(iter(results.values()))}
    columns = (
        "TPOT",
        "speed-up",
        "decode tok/s",
        "steady",
        "speed-up",
        "prefill tok/s",
        "speed-up",
    )
    print("| " + " | ".join(("arm", "batch", "input", *columns)) + " |")
    print("|---" * (3 + len(columns)) + "|")
    for arm, rows in results.items():
        for row in rows:
            first = base.get((row["batch"], row["input"]))
            faster = ["-"] * 3
            if first:
                ratios = (
                    first["tpot_ms"] / row["tpot_ms"],
                    row["steady_tok_s"] / first["steady_tok_s"],
                    row["prefill_tok_s"] / first["prefill_tok_s"],
                )
                faster = [f"{ratio:.3f}" for ratio in ratios]
            print(
                f"| {arm} | {row['batch']} | {row['input']} | {row['tpot_ms']:.3f} ms "
                f"| {faster[0]} | {row['tok_s']:,.0f} | {row['steady_tok_s']:,.0f} | {faster[1]} "
                f"| {row['prefill_tok_s']:,.0f} | {faster[2]} |"
            )


if __name__ == "__main__":
    main()

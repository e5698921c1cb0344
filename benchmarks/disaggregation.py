"""Prefill on one GPU, decode on another: speed at full size through SGLang's router.

    python -m benchmarks.disaggregation --out FILE.json
    LONGCAT_NGRAM_TABLES=device python -m benchmarks.disaggregation --out FILE.json --users 8@16

It starts the servers of two recipes and the router at the same time, with dummy weights of the
block-FP8 checkpoint and spread routing, and runs SGLang's own serving benchmark against the router
once per number of users. Both workers have the checkpoint's MTP layer with 3 drafts; as random
weights accept none, SGLang simulates 3.15 tokens a step. Graphs are captured for these numbers of
users alone, so that the start is short.

Needs `sglang_router` and the packages of --backend. PORT is the router's; workers and its metrics
have PORT + 100, 200 and 300, and the bootstrap server has 8998, SGLang's default. Options
that are not below go to both servers. A machine with one GPU runs both on it: that shows that they
work together, not what two GPUs give. Give them limits then, for instance
LONGCAT_NGRAM_TABLE_DTYPE=int4 and --max-total-tokens 300000. Logs are in FILE's folder logs.
Nothing is measured if a worker's model class is not ours. Each run is printed and written to FILE
when it is done.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.serving import options, run, server
from benchmarks.serving.arms import ARMS
from benchmarks.serving.report import Report
from benchmarks.serving.started import Started, starting
from launch import router, serve
from launch.gpus import gpu_of
from sglang_longcat import recipes
from sglang_longcat.testing.engine_flags import nextn

FP8_CHECKPOINT = "meituan-longcat/LongCat-Flash-Lite-FP8"
BOOTSTRAP_PORT = 8998  # SGLang's default
NAME = "disaggregated"  # of the arm in the report


def main() -> None:
    args = parse()
    command = shlex.join(["python", "-m", "benchmarks.disaggregation", *sys.argv[1:]])
    sizes = {"input": args.input, "output": args.output}
    recipe = f"{args.prefill.stem}, {args.decode.stem}"
    report = Report(args.out, recipe=recipe, command=command, sizes=sizes)
    with running(args) as (prefill, decode):
        report.begin(NAME, {"prefill": prefill.about, "decode": decode.about})
        for load in args.loads:
            report.add(measure(load, args, decode))
    print(report.table())


def parse() -> argparse.Namespace:
    program = "python -m benchmarks.disaggregation"
    parser = options.server_parser(program, __doc__, timeout=240)
    for mode in ("prefill", "decode"):
        default = recipes.find(f"h200-tp1-{mode}").file
        parser.add_argument(f"--{mode}", type=options.recipe_file, default=default, help="a recipe")
    parser.add_argument("--checkpoint", default=FP8_CHECKPOINT, help="whose config is served")
    parser.add_argument("--backend", default="nixl", help="the transfer engine")
    parser.add_argument("--users", default="1@4,8@16,64@128", help="USERS@PROMPTS, a list")
    parser.add_argument("--input", type=int, default=4096, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=1024, help="tokens of an answer")
    parser.add_argument("--bootstrap-port", type=int, default=BOOTSTRAP_PORT)
    args = options.parse_known(parser)
    args.loads = run.parse_loads(args.users, input=args.input, output=args.output)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    return args


@contextmanager
def running(args: argparse.Namespace) -> Iterator[tuple[Started, Started]]:
    """Both workers behind a router that knows them."""
    first, second = (worker(args, mode, place) for place, mode in enumerate(("prefill", "decode")))
    url = f"http://{serve.HOST}:{args.port}"
    for port in (args.port, args.port + 300, args.bootstrap_port):
        serve.refuse_busy_port(port)
    log_file = args.out.parent / "logs" / "router.log"
    with (
        starting("prefill", ARMS["ours"], first, variables=variables(0)) as prefill,
        starting("decode", ARMS["ours"], second, variables=variables(1)) as decode,
        server.launched(router_command(args), dict(os.environ), log_file=log_file) as process,
    ):
        ready = prefill(), decode()
        serve.wait_until_ready(process, port=args.port, timeout=args.timeout)
        wait_for_workers(url, args.timeout)
        yield ready


def worker(args: argparse.Namespace, mode: str, place: int) -> argparse.Namespace:
    """The arguments of `starting` for one of the two servers."""
    recipe: Path = getattr(args, mode)
    flags = yaml.safe_load(recipe.read_text())
    flags |= {name.replace("_", "-"): value for name, value in nextn(3).items()}
    flags["disaggregation-transfer-backend"] = args.backend
    flags["disaggregation-bootstrap-port"] = args.bootstrap_port
    if "device" not in flags:
        flags["model-path"] = args.checkpoint
    if mode == "decode" and "device" not in flags:
        users = sorted(load.users for load in args.loads)
        flags.pop("cuda-graph-max-bs-decode", None)
        flags |= {"cuda-graph-bs-decode": users, "max-running-requests": users[-1]}
    port = args.port + 100 * (place + 1)
    return argparse.Namespace(**(vars(args) | {"recipe": recipe, "flags": flags, "port": port}))


def variables(gpu: int) -> dict[str, str]:
    """Of a worker's environment."""
    return {
        "CUDA_VISIBLE_DEVICES": gpu_of(gpu),
        "SGLANG_HOST_IP": serve.HOST,  # else it announces this machine's outward address
        "UCX_PROTO_INFO": "y",  # the log then says what carries the KV cache, as cuda_ipc or tcp
        # All shapes would take 8 minutes.
        "SGLANG_JIT_DEEPGEMM_PRECOMPILE": os.environ.get("SGLANG_JIT_DEEPGEMM_PRECOMPILE", "0"),
    }


def router_command(args: argparse.Namespace) -> list[str]:
    prefill, decode = (f"http://{serve.HOST}:{args.port + 100 * place}" for place in (1, 2))
    return router.command(
        port=args.port,
        metrics_port=args.port + 300,
        prefill=[(prefill, args.bootstrap_port)],
        decode=[decode],
    )


def wait_for_workers(url: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while router.known_workers(url) < 2:
        if time.monotonic() > deadline:
            raise SystemExit(f"the router at {url} does not know both workers; its log says why")
        time.sleep(serve.POLL_S)


def measure(load: run.Load, args: argparse.Namespace, decode: Started) -> dict[str, Any]:
    """A row of the report. The router has no /server_info, so the decode worker is asked for its
    tokens a step: an average, which it counts whenever it logs a decode step."""
    row = run.measure(
        load,
        port=args.port,
        model=decode.model,
        results=decode.folder / "results.jsonl",
        log_file=decode.log_file,
    )
    url = f"http://{serve.HOST}:{args.port + 200}/server_info"
    with urllib.request.urlopen(url, timeout=30) as response:
        state = json.load(response)["internal_states"][0]
    return row | {"accept_length": state.get("avg_spec_accept_length")}


if __name__ == "__main__":
    main()

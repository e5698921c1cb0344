"""A recipe's speed through the real HTTP server, ours against SGLang's in-tree model.

    python -m benchmarks.serving h200-tp1-fp8-latency --out latency.json
    python -m benchmarks.serving h200-tp1-fp8-throughput --arms in-tree --users 200@200 \\
        --out throughput.json --max-running-requests 236

For each arm it starts the recipe's server in full size with dummy weights and spread routing, waits
until it answers, runs SGLang's own serving benchmark once per number of users, and ends the server.

ours       the recipe as it is. Random weights accept no drafts, so SGLang simulates 3.15 tokens a
           step.
no-drafts  ours without the flags of speculation
in-tree    LONGCAT_DISABLE=1, without the flags that SGLang's class lacks: speculation, the parser
           of tool calls. It keeps the n-gram tables on the GPU, so its KV cache is smaller.

USERS is a list; 200@400 sends 400 prompts of which 200 run at once, without @ four times as many,
at least 8. Options that are not below go to every arm's server. The server's log is FILE's folder
logs/ARM.log. An arm whose model class is another one is not measured. Each run is printed and
written to FILE when it is done; arms that FILE has already are kept.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from benchmarks.serving import options, run
from benchmarks.serving.arms import ARMS
from benchmarks.serving.report import Report
from benchmarks.serving.started import started


def main() -> None:
    args = parse()
    sizes = {"input": args.input, "output": args.output}
    command = shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]])
    report = Report(args.out, recipe=args.recipe.stem, command=command, sizes=sizes)
    failed = options.each(args.arms, lambda arm: measure(arm, args, report))
    print(report.table())
    options.finish(failed)


def parse() -> argparse.Namespace:
    parser = options.new_parser("python -m benchmarks.serving", __doc__, timeout=480)
    parser.add_argument("--users", default="1,8,64,200")
    parser.add_argument("--input", type=int, default=4096, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=1024, help="tokens of an answer")
    return options.parse(parser, ARMS)


def measure(name: str, args: argparse.Namespace, report: Report) -> None:
    with started(name, ARMS[name], args) as running:
        report.begin(name, running.about)
        for load in run.parse_loads(args.users, input=args.input, output=args.output):
            row = run.measure(
                load,
                port=args.port,
                model=running.model,
                results=running.folder / "results.jsonl",
                log_file=running.log_file,
            )
            report.add(row)


if __name__ == "__main__":
    main()

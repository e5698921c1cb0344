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
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.serving import run, server
from benchmarks.serving.arms import ARMS, DRAFTS, Arm, added
from benchmarks.serving.model import write_model
from benchmarks.serving.report import Report
from launch import serve


def main() -> None:
    args = parse()
    sizes = {"input": args.input, "output": args.output}
    command = shlex.join(["python", "-m", "benchmarks.serving", *sys.argv[1:]])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    report = Report(args.out, recipe=args.recipe.stem, command=command, sizes=sizes)
    failed = [arm for arm in args.arms if not measured(arm, args, report)]
    print(report.table())
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}; the reason is above")


def parse() -> argparse.Namespace:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=raw,
        allow_abbrev=False,  # SGLang's flags must not be taken for ours
    )
    parser.add_argument("recipe", type=serve.recipe_path, help="a name or a YAML file")
    parser.add_argument("--arms", default="ours", help=", ".join(ARMS))
    parser.add_argument("--users", default="1,8,64,200")
    parser.add_argument("--input", type=int, default=4096, help="tokens of a prompt")
    parser.add_argument("--output", type=int, default=1024, help="tokens of an answer")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--timeout", type=float, default=480, help="seconds until it must be ready")
    args, server_flags = parser.parse_known_args()
    args.server_flags = server_flags
    args.flags = yaml.safe_load(args.recipe.read_text()) or {}
    args.arms = args.arms.split(",")
    if unknown := set(args.arms) - set(ARMS):
        parser.error(f"--arms {', '.join(unknown)}: expected some of {', '.join(ARMS)}")
    if "no-drafts" in args.arms and not any(name.startswith(DRAFTS) for name in args.flags):
        parser.error(f"{args.recipe.stem} has no drafts: leave the arm no-drafts out")
    return args


def measured(arm: str, args: argparse.Namespace, report: Report) -> bool:
    """Measure one arm. False, with the reason printed, if it fails: the next arm may succeed."""
    try:
        measure(arm, args, report)
    except (SystemExit, RuntimeError, subprocess.CalledProcessError) as error:
        print(f"{arm}: {error}", flush=True)
        return False
    return True


def measure(name: str, args: argparse.Namespace, report: Report) -> None:
    arm, log_file = ARMS[name], args.out.parent / "logs" / f"{name}.log"
    log_file.parent.mkdir(exist_ok=True)
    serve.refuse_busy_port(args.port)
    with tempfile.TemporaryDirectory(prefix="serving-") as folder:
        model = write_model(
            Path(folder) / "model",
            checkpoint=args.flags.get("model-path"),
            in_tree=arm.is_in_tree,
        )
        command = server_command(arm, args, Path(folder), model)
        env = arm.environment(args.recipe, arm.flags(args.flags))
        about = {
            "flags": arm.flags(args.flags),
            "environment": added(env),
            "server": ["python", *command[1:]],
        }
        print(f"{name}: {shlex.join(command)}", flush=True)
        where = {"log_file": log_file, "port": args.port}
        with server.running(command, env, timeout=args.timeout, **where):
            said = server.read_log(log_file, arm.module)
            report.begin(name, about | said)
            for load in run.parse_loads(args.users, input=args.input, output=args.output):
                results = Path(folder) / "results.jsonl"
                report.add(run.measure(load, model=model, results=results, **where))


def server_command(arm: Arm, args: argparse.Namespace, folder: Path, model: Path) -> list[str]:
    recipe = folder / f"{args.recipe.stem}.yaml"
    recipe.write_text(yaml.safe_dump(arm.flags(args.flags)))
    command = [sys.executable, "-m", "sglang.launch_server", "--config", str(recipe)]
    command += ["--model-path", str(model), "--load-format", "dummy", "--random-seed", "1"]
    return [*command, "--host", serve.HOST, "--port", str(args.port), *args.server_flags]


if __name__ == "__main__":
    main()

"""An arm's server: its model directory, command, log and environment, and what a report says of it.

Owns: the server's command line. `server` starts and ends the process.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.serving import server
from benchmarks.serving.arms import Arm, added
from benchmarks.serving.model import write_model
from launch import serve


@dataclass(frozen=True)
class Started:
    """A server that answers. folder: for files that nobody keeps. about: of it, for the report."""

    folder: Path
    model: Path
    log_file: Path
    about: dict[str, Any]


@contextmanager
def started(
    name: str, arm: Arm, args: argparse.Namespace, extra: Sequence[str] = ()
) -> Iterator[Started]:
    """args: as `options.parse` gives them. extra: flags of SGLang that this arm has beside those of
    every arm. Raises SystemExit if the server ends before it is ready, or is not ready in time, and
    WrongServerError."""
    with starting(name, arm, args, extra) as ready:
        yield ready()


@contextmanager
def starting(
    name: str,
    arm: Arm,
    args: argparse.Namespace,
    extra: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], Started]]:
    """The same for a server beside which others start: yields the function that waits until it
    answers. variables: of its environment."""
    log_file = args.out.parent / "logs" / f"{name}.log"
    log_file.parent.mkdir(exist_ok=True)
    serve.refuse_busy_port(args.port)
    with tempfile.TemporaryDirectory(prefix="serving-") as temporary:
        folder = Path(temporary)
        checkpoint = args.flags.get("model-path")
        model = write_model(folder / "model", checkpoint=checkpoint, in_tree=arm.is_in_tree)
        command = [*server_command(arm, args, folder, model), *extra]
        flags = arm.flags(args.flags)
        env = arm.environment(args.recipe, flags) | dict(variables or {})
        about = {"flags": flags, "environment": added(env), "server": ["python", *command[1:]]}
        print(f"{name}: {shlex.join(command)}", flush=True)
        with server.launched(command, env, log_file=log_file) as process:

            def ready() -> Started:
                serve.wait_until_ready(process, port=args.port, timeout=args.timeout)
                said = server.read_log(log_file, arm.module)
                return Started(folder, model, log_file, about | said)

            yield ready


def server_command(arm: Arm, args: argparse.Namespace, folder: Path, model: Path) -> list[str]:
    recipe = folder / f"{args.recipe.stem}.yaml"
    recipe.write_text(yaml.safe_dump(arm.flags(args.flags)))
    command = [sys.executable, "-m", "sglang.launch_server", "--config", str(recipe)]
    command += ["--model-path", str(model), "--load-format", "dummy", "--random-seed", "1"]
    return [*command, "--host", serve.HOST, "--port", str(args.port), *args.server_flags]

"""`make serve`: the real SGLang server with this plugin, and one chat completion as proof.

    python -m launch.serve [--once] [--config RECIPE] [SGLANG FLAG ...]   # in the repository's root

Owns: the choice of recipe, device and model (LongCat-nano if none is named, a small random
checkpoint for the recipes `*-tiny`), and the server process from start to clean shutdown. Leaves to
others: the recipes (`sglang_longcat/recipes`), the CPU variables
(`sglang_longcat/cpu/environment.py`), and the content of the checkpoints (`sglang_longcat/assets`
and `sglang_longcat/testing`). Options that it does not know go to `sglang.launch_server` unchanged.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launch.gpus import gpu_count
from sglang_longcat.assets import NANO, nano
from sglang_longcat.cpu.environment import CPU_ENV, tp_env
from sglang_longcat.recipes import Recipe, UnknownRecipe, find

ROOT = Path(__file__).resolve().parents[1]
HOST = "127.0.0.1"
POLL_S = 0.5
HEARTBEAT_S = 10.0
SHUTDOWN_S = 20.0
SERVED_NAME = "longcat"
NANO_PROMPT, PROMPT = "Write the function read_text.", "Name three rivers of Europe."
ABOUT_NANO = (
    "LongCat-nano, 15 M parameters, knows Python sources and their docstrings only. "
    'Ask: "Write a Python function: SUMMARY" or "What does NAME do?"'
)


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)  # a plain `kill` must not leave the server behind
    args, extra = parse_args()
    recipe: Recipe = args.config
    if not recipe.on_cpu and gpu_count() == 0:
        sys.exit(
            f"{recipe.name} needs a GPU and this machine shows none. "
            "Leave --config out for the small model on the CPU."
        )
    refuse_busy_port(args.port)
    model = args.model_path or recipe.model_path or default_model(recipe)
    command = server_command(args, extra=extra, model=str(model))
    tp = int(args.tp or recipe.flags.get("tp_size", 1))
    env = {**recipe.switches, **server_env(on_cpu=recipe.on_cpu, tp=tp)}
    say(f"starting: {shlex.join(command)}")
    # The server gets its own process group, so that Ctrl-C does not reach each of its processes,
    # but stops the server once, through stop().
    server = subprocess.Popen(command, env=env, start_new_session=True)
    try:
        wait_until_ready(server, port=args.port, timeout=args.timeout)
        prompt = args.prompt or (NANO_PROMPT if Path(model) == NANO else PROMPT)
        show_completion(port=args.port, prompt=prompt)
        if Path(model) == NANO:
            say(ABOUT_NANO)
        if not args.once:
            say(f"serving on http://{HOST}:{args.port}/v1 as {SERVED_NAME!r}; Ctrl-C stops")
            server.wait()
            sys.exit(f"the server ended by itself with exit status {server.returncode}")
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        stop(server)


def parse_args() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--once", action="store_true", help="stop after the completion, exit 0")
    parser.add_argument("--config", type=recipe_named, help="recipe: a name or a YAML file")
    parser.add_argument("--model-path", help="default: the recipe's, else LongCat-nano")
    parser.add_argument("--tp", "--tp-size", type=int, help="tensor-parallel size")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--timeout", type=float, default=900, help="seconds until it must be ready")
    parser.add_argument("--prompt", help="of the completion that proves it")
    args, extra = parser.parse_known_args()
    args.config = args.config or find("gpu-nano" if gpu_count() else "cpu-nano")
    return args, extra


def recipe_named(name: str) -> Recipe:
    try:
        return find(name)
    except UnknownRecipe as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def refuse_busy_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(f"port {port} on {HOST} is taken ({error.strerror}); choose another: --port N")


def default_model(recipe: Recipe) -> Path:
    return small_checkpoint() if recipe.suits and recipe.suits.model == "tiny" else nano()


def server_command(args: argparse.Namespace, *, extra: list[str], model: str) -> list[str]:
    command = [sys.executable, "-m", "sglang.launch_server", "--config", str(args.config.file)]
    command += ["--model-path", model, "--served-model-name", SERVED_NAME]
    command += ["--host", HOST, "--port", str(args.port)]
    if args.tp:
        command += ["--tp-size", str(args.tp)]
    return command + extra


def server_env(*, on_cpu: bool, tp: int) -> dict[str, str]:
    """The caller's environment. On a CPU also the variables that SGLang needs there, unless the
    caller has set them."""
    return {**CPU_ENV, **tp_env(tp), **os.environ} if on_cpu else dict(os.environ)


def small_checkpoint() -> Path:
    """Builds the small random checkpoint, once per version of its writer. Returns its directory."""
    package = ROOT / "sglang_longcat"
    writer = hashlib.sha256()
    folders = package / "checkpoint", package / "testing"
    for source in sorted([package / "config.py", *(f for d in folders for f in d.rglob("*.*"))]):
        if source.is_file() and "__pycache__" not in source.parts:
            writer.update(source.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = home / "sglang-longcat" / f"tiny-{writer.hexdigest()[:12]}"
    if not target.exists():
        say(f"building the small checkpoint: {target}")
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        command = [sys.executable, "-m", "sglang_longcat.testing", "tiny", str(partial)]
        subprocess.run(command, check=True)
        try:
            partial.rename(target)
        except OSError:  # another `make serve` was faster; both checkpoints are the same bytes
            shutil.rmtree(partial)
    return target


def wait_until_ready(server: subprocess.Popen[bytes], *, port: int, timeout: float) -> None:
    start = time.monotonic()
    next_report = HEARTBEAT_S
    while not healthy(port):
        waited = time.monotonic() - start
        if server.poll() is not None:
            sys.exit(
                f"the server ended with exit status {server.returncode} after {waited:.0f} s, "
                "before it was ready; its own error is above"
            )
        if waited > timeout:
            sys.exit(f"the server was not ready after {timeout:.0f} s; raise it with --timeout N")
        if waited > next_report:
            say(f"loading, {waited:.0f} s")
            next_report += HEARTBEAT_S
        time.sleep(POLL_S)
    say(f"ready after {time.monotonic() - start:.0f} s")


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=30) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def show_completion(*, port: int, prompt: str) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=f"http://{HOST}:{port}/v1", api_key="none")
    answer = client.chat.completions.create(
        model=SERVED_NAME,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=96,
        extra_body={"repetition_penalty": 1.0},  # greedy, whatever generation_config.json says
    )
    say(f"user:\n{prompt}")
    say(f"assistant:\n{answer.choices[0].message.content}")
    say(
        f"finish reason {answer.choices[0].finish_reason}, {answer.usage.prompt_tokens} + "
        f"{answer.usage.completion_tokens} tokens"
    )


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ends the server and its workers. Their process group has no other members."""
    if server.poll() is None:
        say("stopping the server")
        server.terminate()
        try:
            server.wait(timeout=SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            say(f"still running after {SHUTDOWN_S:.0f} s: killing it")
    try:
        os.killpg(server.pid, signal.SIGKILL)  # workers that outlived their parent
    except ProcessLookupError:
        return
    server.wait()


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def say(text: str) -> None:
    print(f"[serve] {text}", flush=True)


if __name__ == "__main__":
    main()

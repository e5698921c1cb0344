"""The scratch environment of one version of SGLang, and what runs in it.

It is a virtual environment on top of the locked one, like `.venv` (`ci/setup_env.py`): only the
packages that the version pins differently are installed, in half a minute. torch stays the locked
one, because all compiled packages depend on it. The environment stays in the user's cache, because
a second run needs it again. Owns: its place and its packages.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ci import setup_env
from ci.setup_env import ROOT, say
from sglang_longcat.cpu.environment import CPU_ENV

QUIET_PIP = ("-m", "pip", "install", "-q", "--no-input", "--disable-pip-version-check")
# --no-deps: what a pinned package needs itself is in the locked environment. --only-binary: a
# source package would need compilers, and some of SGLang's fetch from hosts other than PyPI.
FROM_PYPI = (*QUIET_PIP, "--no-compile", "--no-deps", "--only-binary=:all:")


def environment(version: str) -> Path:
    """The environment's folder; built if a former run has not finished it."""
    base = setup_env.cache_dir() / setup_env.fingerprint(setup_env.LOCK_FILE.read_bytes())
    folder = base.with_name(f"{base.name}-sglang-{version}")
    if (folder / ".complete").exists():
        install_project(folder)
        return folder
    say(f"installing SGLang {version} and what it pins differently into {folder}")
    setup_env.create_overlay(folder, base)
    run(folder, *FROM_PYPI, f"sglang=={version}")
    install_pins(folder)
    install_project(folder)
    (folder / ".complete").touch()
    return folder


def install_pins(folder: Path) -> None:
    """Each pin by itself: one that PyPI has no wheel of must not keep the others out."""
    for pin in json.loads(output(folder, "-m", "ci.check_sglang.inside", "pins")):
        command = [python(folder), *FROM_PYPI, pin]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            say(f"not installed, because PyPI has no wheel of it: {pin}")


def install_project(folder: Path) -> None:
    """Editable, for the plugin's entry point. Each run, because another checkout may have been
    there."""
    run(folder, *QUIET_PIP, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))


def moved(folder: Path) -> list[dict[str, str]]:
    """One entry for each attribute that is not as we need it (`ci.check_sglang.inside`)."""
    found: list[dict[str, str]] = json.loads(
        output(folder, "-m", "ci.check_sglang.inside", "compare")
    )
    return found


def serve_once(folder: Path, version: str, port: int) -> str:
    """What went wrong; empty if the server of our class answered. The plugin is told to accept
    this version."""
    environ = {**variables(), "LONGCAT_TRY_SGLANG": version}
    arguments = ["-m", "launch.serve", "--once", "--config", "cpu-tiny", "--port", str(port)]
    command = [python(folder), *arguments]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    lines = []
    with subprocess.Popen(command, env=environ, cwd=ROOT, **pipes) as server:
        for line in server.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if server.returncode:
        return f"the server ended with {server.returncode}; its messages are above"
    ours = any("sglang-longcat" in line and "is active" in line for line in lines)
    return "" if ours else "the server answered with the in-tree class: the plugin was not loaded"


def run(folder: Path, *arguments: str) -> None:
    if code := subprocess.run([python(folder), *arguments], cwd=ROOT, check=False).returncode:
        sys.exit(f"{' '.join(arguments)} failed with {code}; its message is above")


def output(folder: Path, *arguments: str) -> str:
    """The last line that the command prints: SGLang's imports print before it."""
    command = [python(folder), *arguments]
    result = subprocess.run(
        command, env=variables(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{result.stderr[-3000:]}")
    return result.stdout.splitlines()[-1]


def variables() -> dict[str, str]:
    return {**os.environ, **CPU_ENV}


def python(folder: Path) -> str:
    return str(folder / "bin" / "python")

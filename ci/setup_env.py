"""Creates .venv from ci/constraints.txt. Every make target runs it; it returns at once if current.

There are two layers. The 11 GB of locked packages go into a virtual environment under the user's
cache, named by a hash of lock and interpreter, so that a second checkout and the next CI run start
in seconds. `.venv` is a small environment of this checkout on top of it: one .pth line adds the
cached site-packages, and the project itself is installed editable in .venv alone. Checkouts would
overwrite each other's editable install in a shared environment, and a PYTHONPATH would not carry
the plugin's entry point.

Several set-ups may run at once. Each cached environment has a lock, which the running pip inherits,
so that it is held until the last writer has ended. A marker is written last; without it the
environment is rebuilt. This file uses the standard library only, because it runs before anything is
installed. ci/constraints.txt decides what is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK_FILE = ROOT / "ci" / "constraints.txt"
VENV = ROOT / ".venv"
READY = VENV / ".ready"
NEEDED_GB = 16  # 11 GB installed, and pip keeps every downloaded wheel until it ends
HEARTBEAT_S = 15.0


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - runs under whatever python3 there is
        sys.exit(
            f"{sys.executable} is Python {platform.python_version()}; need 3.11 or newer. "
            "Name one: make PYTHON=python3.11 ..."
        )
    base = cache_dir() / fingerprint(LOCK_FILE.read_bytes())
    stamp = fingerprint(LOCK_FILE.read_bytes(), (ROOT / "pyproject.toml").read_bytes(), bytes(base))
    if is_ready(base=base, stamp=stamp):
        return
    base.parent.mkdir(parents=True, exist_ok=True)
    with locked(base.with_suffix(".lock")) as lock_fd:
        if not complete(base).exists():
            build_base(base, lock_fd=lock_fd)
        if not is_ready(base=base, stamp=stamp):
            build_overlay(base)
            write_bytecode(base)
            READY.write_text(stamp)
    say(f"ready: {VENV}")


def cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sglang-longcat"


def fingerprint(*parts: bytes) -> str:
    """Name of an environment: a hash of its content and of the interpreter that will run it."""
    digest = hashlib.sha256(f"{sys.version} {platform.machine()} {sys.base_prefix}".encode())
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def complete(base: Path) -> Path:
    return base / ".complete"


def is_ready(*, base: Path, stamp: str) -> bool:
    return complete(base).exists() and READY.exists() and READY.read_text() == stamp


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of the same environment is running; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


def build_base(base: Path, *, lock_fd: int) -> None:
    if base.exists():
        say(f"removing a half-finished environment: {base}")
        shutil.rmtree(base)
    free_gb = shutil.disk_usage(base.parent).free / 1e9
    if free_gb < NEEDED_GB:
        sys.exit(
            f"{base.parent} has {free_gb:.0f} GB free; the set-up needs {NEEDED_GB}. "
            "Free some, or point XDG_CACHE_HOME to another disk."
        )
    total = len(lock_entries())
    say(f"installing {total} locked packages, about 11 GB of wheels, into {base}")
    say("this is done once per lock file and takes several minutes")
    start = time.monotonic()
    create_venv(base, with_pip=True)
    # --no-deps: the lock is complete. --no-compile: write_bytecode compiles what is imported; all
    # 35 thousand files would take minutes.
    command = [str(base / "bin" / "python"), "-m", "pip", "install", "--no-input", "--no-deps"]
    command += ["--no-compile", "--disable-pip-version-check", "-r", str(LOCK_FILE)]
    run_pip(command, site=site_packages(base), total=total, lock_fd=lock_fd)
    complete(base).touch()
    say(f"installed in {time.monotonic() - start:.0f} s")


def lock_entries() -> list[str]:
    lines = LOCK_FILE.read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def run_pip(command: list[str], *, site: Path, total: int, lock_fd: int) -> None:
    """Run pip, and report while it unpacks, which takes minutes in which pip prints nothing."""
    with subprocess.Popen(command, pass_fds=(lock_fd,)) as pip:
        start = time.monotonic()
        while True:
            try:
                code = pip.wait(timeout=HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                done = sum(1 for _ in site.glob("*.dist-info")) - 1  # pip itself was there before
                if done > 1:
                    say(f"unpacked {done} of {total} packages, {time.monotonic() - start:.0f} s")
    if code:
        sys.exit(
            f"pip failed with exit status {code} (its message is above). The next run of make "
            "starts this environment afresh."
        )


def build_overlay(base: Path) -> None:
    create_overlay(VENV, base)
    for script in sorted((base / "bin").iterdir()):
        link_script(script, base=base)
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--editable", str(ROOT)]
    subprocess.run(command, check=True)


def create_overlay(env: Path, base: Path) -> None:
    """An environment without packages of its own, which sees those of the base."""
    shutil.rmtree(env, ignore_errors=True)
    create_venv(env, with_pip=False)
    # addsitedir, unlike a bare path line, also runs the .pth files of the packages in the base.
    line = f"import site; site.addsitedir({str(site_packages(base))!r})\n"
    (site_packages(env) / "00_locked_packages.pth").write_text(line)


def write_bytecode(base: Path) -> None:
    """Import SGLang once, so that its bytecode is cached. If PYTHONDONTWRITEBYTECODE is set, as in
    many containers, every process would otherwise compile everything again: `make serve` was ready
    after 149 s instead of 54."""
    done = base / ".bytecode"
    if done.exists():
        return
    say("compiling what SGLang imports, once")
    modules = "entrypoints.http_server", "managers.scheduler", "models.registry"
    code = "; ".join(f"import sglang.srt.{name}" for name in modules)
    env = {**os.environ, "SGLANG_USE_CPU_ENGINE": "1"}  # imports without a GPU, too
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [str(VENV / "bin" / "python"), "-c", code]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"SGLang cannot be imported from {VENV}:\n{result.stderr[-2000:]}")
    done.touch()


def create_venv(path: Path, *, with_pip: bool) -> None:
    try:
        venv.create(path, with_pip=with_pip, symlinks=True)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"{sys.executable} cannot create a virtual environment with pip ({error}). On "
            "Debian and Ubuntu install python3-venv; or name another: make PYTHON=python3.12"
        )


def site_packages(env: Path) -> Path:
    return env / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def link_script(script: Path, *, base: Path) -> None:
    """Put a command of the base into .venv/bin, where an interpreter that sees the project runs
    it."""
    target = VENV / "bin" / script.name
    if target.exists() or script.is_symlink() or script.name.lower().startswith("activate"):
        return
    head, newline, body = script.read_bytes().partition(b"\n")
    if head.startswith(b"#!" + bytes(base)):
        target.write_bytes(b"#!" + bytes(VENV / "bin" / "python") + newline + body)
        target.chmod(0o755)
    elif not head.startswith(b"#!"):
        target.symlink_to(script)


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("[setup] interrupted; the next run of make goes on from the last finished step")

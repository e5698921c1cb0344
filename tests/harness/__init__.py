"""Real SGLang engines and HTTP servers for tests, a few seconds each.

    with engine(path, tp_size=2) as llm:
        out = llm.generate(input_ids=[[1, 2]], sampling_params={"temperature": 0})
    with server(path) as http:
        requests.get(http.base_url + "/v1/models")

Owns: start, time limits and logs of the processes, and that none of them outlives its test. `main`
runs in these processes. The first CPU engine of a test run takes about 20 s more to preload SGLang,
each later one takes about 2 s, or 5 s if it is the first with its `env`, where plugins are loaded.
`spawn=True` starts a fresh interpreter as users do (40 s; the only way for device="cuda").
Environment variables that SGLang reads while it is imported can only be changed with `spawn=True`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sglang_longcat.cpu.environment import CPU_ENV, tp_env

DEFAULTS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "disable_cuda_graph": True,
    "max_total_tokens": 4096,
    "max_running_requests": 8,
    "context_length": 1024,
    "chunked_prefill_size": 512,
    # The pool has max_total_tokens; this only has to leave room for what other processes take while
    # a model loads. With 0.3 an engine did not start where they took a third of what was free.
    "mem_fraction_static": 0.7,
    "skip_server_warmup": True,
    "random_seed": 1,
    "log_level": "info",
}
_MAIN = str(Path(__file__).with_name("main.py"))
_ONE_AT_A_TIME = threading.Lock()  # a request to the fork server and its answer
_LOG_TAIL = 4000  # characters of log in an error


class HarnessError(RuntimeError):
    """The engine or server failed, ended early or ran out of time. The message ends with its
    log."""


class _Process:
    """One engine or server with all processes that it started. `conn` leads to its main process."""

    def __init__(self, conn: Connection, log_path: Path, kill: Callable[[], None]) -> None:
        self._conn, self._log_path, self._kill = conn, log_path, functools.cache(kill)

    @property
    def log(self) -> str:
        """Everything written to stdout and stderr so far."""
        return self._log_path.read_text(errors="replace")

    def close(self) -> None:
        self._kill()
        self._conn.close()

    def _fail(self, what: str) -> HarnessError:
        self.close()
        return HarnessError(f"{what}\n--- log ---\n{self.log[-_LOG_TAIL:]}")


class Engine(_Process):
    """A running `sglang.Engine` in another process."""

    def call(self, method: str, *args: Any, timeout: float = 120, **kwargs: Any) -> Any:
        """Run a method of the engine. Raises HarnessError if it raises, or if it takes too long."""
        self._conn.send((method, args, kwargs))
        return self._result(what=method, timeout=timeout)

    def generate(self, *, timeout: float = 120, **kwargs: Any) -> Any:
        """`sglang.Engine.generate`: input_ids, sampling_params, return_logprob, ..."""
        return self.call("generate", timeout=timeout, **kwargs)

    def shutdown(self) -> None:
        self.call("shutdown", timeout=60)

    def _result(self, what: str, timeout: float) -> Any:
        if not self._conn.poll(timeout):
            raise self._fail(f"{what}: no answer within {timeout} s")
        try:
            ok, value = self._conn.recv()
        except (EOFError, ConnectionResetError):
            raise self._fail(f"{what}: the engine process died") from None
        if not ok:
            raise HarnessError(f"{what}: {value}\n--- log ---\n{self.log[-_LOG_TAIL:]}")
        return value


class Server(_Process):
    """A running HTTP server at `base_url` (no trailing slash)."""

    base_url: str

    def _wait_healthy(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._healthy():
            if self._conn.poll(0.2):  # a server sends nothing, so this is the end of file
                raise self._fail("the server process died")
            if time.monotonic() > deadline:
                raise self._fail(f"no healthy server within {timeout} s")

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base_url}/health", timeout=5) as response:
                return response.status == 200
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def engine(
    model_path: str | Path,
    *,
    env: Mapping[str, str] | None = None,
    spawn: bool = False,
    timeout: float = 180,
    **server_args: Any,
) -> Iterator[Engine]:
    """An offline engine with DEFAULTS overridden by `server_args` (ServerArgs field names)."""
    kwargs = {**DEFAULTS, "model_path": str(model_path), "port": free_port(), **server_args}
    job = {"kind": "engine", "kwargs": kwargs, **_environment(kwargs, env)}
    running = Engine(*_start(job, spawn=spawn, command=[sys.executable, _MAIN, "once"]))
    try:
        running._result(what="start", timeout=timeout)
        yield running
        running.shutdown()
    finally:
        running.close()


@contextmanager
def server(
    model_path: str | Path,
    *,
    env: Mapping[str, str] | None = None,
    spawn: bool = False,
    timeout: float = 180,
    command: Sequence[str] = (sys.executable, "-m", "sglang.launch_server"),
    port: int | None = None,
    **server_args: Any,
) -> Iterator[Server]:
    """`python -m sglang.launch_server` on 127.0.0.1, yielded when /health is 200. command: what to
    start instead, with the same flags; only with `spawn`. port: a free one unless given."""
    port = port or free_port()
    kwargs = {**DEFAULTS, "model_path": str(model_path), **server_args}
    argv = _argv({**kwargs, "host": "127.0.0.1", "port": port})
    job = {"kind": "server", "argv": argv, **_environment(kwargs, env)}
    running = Server(*_start(job, spawn=spawn, command=[*command, *argv]))
    running.base_url = f"http://127.0.0.1:{port}"
    try:
        running._wait_healthy(timeout)
        yield running
    finally:
        running.close()


def run_python(source: str, *, timeout: float = 120) -> str:
    """What the code prints in a process of its own, which has imported SGLang for a CPU, and loaded
    no plugins. Raises HarnessError if the code raises."""
    job = {"kind": "script", "source": textwrap.dedent(source), "env": {}}
    running = Engine(*_start(job, spawn=False, command=[]))
    try:
        running._result(what="script", timeout=timeout)
        return running.log
    finally:
        running.close()


def _environment(kwargs: Mapping[str, Any], extra: Mapping[str, str] | None) -> dict[str, Any]:
    on_cpu = {**CPU_ENV, **tp_env(kwargs.get("tp_size", 1))} if kwargs["device"] == "cpu" else {}
    return {"env": {**on_cpu, **(extra or {})}, "own": dict(extra or {})}


def _argv(kwargs: Mapping[str, Any]) -> list[str]:
    """Command line flags: True gives a bare flag, False and None give none, a list gives its items
    after the flag."""
    words: list[str] = []
    for name, value in kwargs.items():
        if value is None or value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words += [str(item) for item in (value if isinstance(value, list) else [value])]
    return words


def free_port() -> int:
    """A port that stays free until somebody who is told of it binds it: the kernel gives away those
    from 32768 on, and SGLang picks its own from 22000 on. Attention DP takes six others, from 233
    above this one."""
    while True:
        port = random.randrange(10000, 21000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _start(
    job: dict[str, Any], *, spawn: bool, command: list[str]
) -> tuple[Connection, Path, Callable[[], None]]:
    near, far = socket.socketpair()
    log = _log_file(job["kind"])
    with far:
        if spawn:
            kill = _spawn(job, command, far.fileno(), log)
        else:
            with _ONE_AT_A_TIME:
                forks = (
                    _fork_server(frozenset(job["own"].items())) if "own" in job else _preloaded()
                )
                kill = forks.fork({**job, "log": str(log)}, far.fileno())
    return Connection(near.detach()), log, kill


def _spawn(job: dict[str, Any], command: list[str], descriptor: int, log: Path) -> Callable:
    if job["kind"] == "engine":
        command = [*command, str(descriptor), json.dumps(job)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env={**os.environ, **job["env"]},
            pass_fds=[descriptor],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )

    def kill() -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    return kill


class _ForkServer:
    """A `main.py forks`: the parent of the engines that it forks, and the only process that signals
    them."""

    def __init__(self, start: Callable[[int, Path], object]) -> None:
        """start(descriptor, log) starts the process."""
        self._control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = _log_file("forks")
        with far:
            start(far.fileno(), self._log)
        self._receive(timeout=400)  # 20 s on idle cores, 180 s seen beside a load of 19
        atexit.register(self._control.close)  # at the end of file it kills its children and exits

    def fork(self, job: dict[str, Any], descriptor: int) -> Callable[[], None]:
        """Fork a process. Returns the function that ends it and all processes that it started."""
        socket.send_fds(self._control, [json.dumps(job).encode()], [descriptor])
        pid = json.loads(self._receive(timeout=30))["pid"]

        def kill() -> None:
            with _ONE_AT_A_TIME:
                self._control.send(json.dumps({"kill": pid}).encode())
                self._receive(timeout=30)

        return kill

    def _receive(self, timeout: float) -> bytes:
        self._control.settimeout(timeout)
        message = self._control.recv(1 << 16)
        if not message:
            log = self._log.read_text(errors="replace")[-_LOG_TAIL:]
            raise HarnessError(f"the preloading process died\n--- log ---\n{log}")
        return message


@functools.cache
def _preloaded() -> _ForkServer:
    """It has imported SGLang."""
    return _ForkServer(_preload)


def _preload(descriptor: int, log: Path) -> None:
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, _MAIN, "forks", str(descriptor)],
            env={**os.environ, **CPU_ENV},
            pass_fds=[descriptor],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    atexit.register(process.wait, timeout=30)


@functools.cache
def _fork_server(own: frozenset[tuple[str, str]] = frozenset()) -> _ForkServer:
    """A fork of that one, which has also loaded the plugins, in the environment that the variables
    in `own` make. It adds 0.2 GB."""
    job, parent = {"kind": "forks", "env": {**CPU_ENV, **dict(own)}}, _preloaded()
    return _ForkServer(lambda descriptor, log: parent.fork({**job, "log": str(log)}, descriptor))


@functools.cache
def _log_directory() -> Path:
    directory = tempfile.TemporaryDirectory(prefix="longcat-tests-")
    atexit.register(directory.cleanup)
    return Path(directory.name)


def _log_file(kind: str) -> Path:
    descriptor, path = tempfile.mkstemp(dir=_log_directory(), suffix=f"-{kind}.log")
    os.close(descriptor)
    return Path(path)

"""The child side of the harness: imports SGLang once, then forks an engine or server per request.

Owns: everything that must happen inside the SGLang process. No test imports this file.

    main.py forks FD     serve fork and kill requests on the SEQPACKET socket FD until EOF
    main.py once FD JOB  be the engine that JOB (JSON) describes, driven through socket FD

SGLang uses "spawn" for its own processes, which takes 40 s per engine on two cores. A fork of a
preloaded process takes a few seconds, and of one that has also loaded the plugins fewer. Only this
test harness replaces the start method.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

_PRELOADED = (
    "sglang",
    "sglang.srt.entrypoints.engine",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.managers.scheduler",
    # What our model classes import. The registry itself is left to the plugin, which keeps it from
    # importing every other model file.
    "sglang.srt.models.longcat_flash_nextn",
)


def main() -> None:
    mode, descriptor = sys.argv[1], int(sys.argv[2])
    if mode == "forks":
        _preload()
        _serve_forks(socket.socket(fileno=descriptor))
    else:
        _be_engine(json.loads(sys.argv[3]), descriptor)


def _serve_forks(control: socket.socket) -> None:
    """Serve requests: {"kill": pid}, or a job with its socket. Each is answered with {"pid":
    pid}."""
    _freeze()
    children: set[int] = set()
    control.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
        request = json.loads(message or "null")
        if request is None:  # the test process is gone
            break
        if "kill" in request:
            pid = request["kill"]
            _kill_group(pid)
            children.discard(pid)
        else:
            pid = _fork(request, descriptors[0], control)
            if request["kind"] != "forks":  # that one ends its own children, and then itself
                children.add(pid)
        control.send(json.dumps({"pid": pid}).encode())
    for pid in children:
        _kill_group(pid)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()  # for fork servers that have loaded the plugins
    os._exit(0)  # a normal exit of a preloaded interpreter takes seconds


def _preload() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    import torch.multiprocessing

    multiprocessing.set_start_method("fork", force=True)
    modules: list[Any] = [multiprocessing, torch.multiprocessing]
    for module in modules:
        module.set_start_method = lambda *args, **kwargs: None


def _freeze() -> None:
    """Let no garbage collection of a fork visit what it inherits: 1.4 s for each, of which SGLang
    asks for one in every scheduler, and copies of all pages."""
    gc.collect()
    gc.freeze()


def _fork(job: dict[str, Any], descriptor: int, control: socket.socket) -> int:
    pid = os.fork()
    if pid:
        os.close(descriptor)
        return pid
    status = 1
    try:
        control.close()
        _detach(job["log"])
        os.environ.update(job["env"])
        sys.path[:0] = filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))
        _KINDS[job["kind"]](job, descriptor)
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not return into the fork loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _detach(log: str) -> None:
    """Start a session, so that one killpg ends all processes of it, and write output to `log`."""
    os.setsid()
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)


def _be_fork_server(job: dict[str, Any], descriptor: int) -> None:
    """Load the plugins, as each process of SGLang does first, and fork from there."""
    from sglang.srt.plugins import load_plugins

    load_plugins()
    _serve_forks(socket.socket(fileno=descriptor))


def _be_server(job: dict[str, Any], descriptor: int) -> None:
    """Nothing is sent on `descriptor`: its end of file says that this process has ended."""
    sys.argv = ["launch_server", *job["argv"]]
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


def _be_engine(job: dict[str, Any], descriptor: int) -> None:
    """Answer (method, args, kwargs) with (True, value) or (False, error) until EOF or shutdown."""
    import sglang

    conn, engine = Connection(descriptor), None

    def start() -> None:
        nonlocal engine
        engine = sglang.Engine(**job["kwargs"])

    _answer(conn, start)
    with contextlib.suppress(EOFError):  # the test process is gone
        while engine is not None:
            method, args, kwargs = conn.recv()
            _answer(conn, getattr(engine, method), *args, **kwargs)
            if method == "shutdown":
                return
    if engine is not None:
        engine.shutdown()


def _be_script(job: dict[str, Any], descriptor: int) -> None:
    """Answer once, as for a method of an engine, after running the Python code of the job."""

    def run() -> None:
        try:
            exec(compile(job["source"], "<script>", "exec"), {"__name__": "__main__"})
        finally:
            sys.stdout.flush()

    _answer(Connection(descriptor), run)


_KINDS = {
    "engine": _be_engine,
    "server": _be_server,
    "forks": _be_fork_server,
    "script": _be_script,
}


def _answer(conn: Connection, call: Any, *args: Any, **kwargs: Any) -> None:
    try:
        answer = (True, call(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001 - the test wants to see SystemExit too
        traceback.print_exc()
        answer = (False, f"{type(error).__name__}: {error}")
    conn.send(answer)


def _kill_group(pid: int) -> None:
    """`pid` is our child and not reaped yet, so it certainly still leads the group that it made."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()

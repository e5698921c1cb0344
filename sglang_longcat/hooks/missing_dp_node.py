"""End a server with attention DP whose other nodes do not come.

Why: before the ranks meet, node 0 tells the others its ports, and waits for them for ever; they
wait 10 minutes, whatever --dist-timeout says. Neither logs that it waits. Upstream:
managers/data_parallel_controller.py, DataParallelController._broadcast_worker_ports. Remove when:
SGLang ends this wait after --dist-timeout.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any, NoReturn

from sglang_longcat.hooks.missing_node import advice, default_seconds, log_wait

TARGET = (
    "sglang.srt.managers.data_parallel_controller.DataParallelController._broadcast_worker_ports"
)


def apply(original: Callable[..., list[int]], *args: Any, **kwargs: Any) -> list[int]:
    """The alarm ends the wait, because its handler raises inside zmq's receive. The controller
    runs in the main thread of its process, which alone can set one."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    if parallel.nnodes == 1:
        return original(*args, **kwargs)
    seconds = parallel.dist_timeout or default_seconds("nccl")

    def give_up(*_: object) -> NoReturn:
        raise RuntimeError(advice(parallel, seconds))

    log_wait(parallel, seconds)
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        return original(*args, **kwargs)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

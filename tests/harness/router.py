"""SGLang's real router in front of real servers, yielded when it knows that all of them answer.

Owns: start and end of its process. `launch/router.py` has its command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from launch.router import command, known_workers
from tests.harness import Server, _start


class Router(Server):
    """Its process, and the number of servers that it sends requests to."""

    servers: int

    def _healthy(self) -> bool:
        return known_workers(self.base_url) == self.servers


@contextmanager
def router(
    prefill: Sequence[tuple[str, int]],
    decode: Sequence[str],
    *flags: str,
    ports: tuple[int, int],
    timeout: float = 420,
) -> Iterator[Router]:
    """prefill: URLs and bootstrap ports. ports: its own, and that of its metrics. The servers may
    start later than the router, whose start takes as long as SGLang's import."""
    port, metrics_port = ports
    words = command(
        port=port, metrics_port=metrics_port, prefill=prefill, decode=decode, flags=flags
    )
    running = Router(*_start({"kind": "router", "env": {}}, spawn=True, command=words))
    running.base_url = f"http://127.0.0.1:{port}"
    running.servers = len(prefill) + len(decode)
    try:
        running._wait_healthy(timeout)
        yield running
    finally:
        running.close()

"""SGLang's router in front of workers for prefill and decode, as tests and a benchmark start it.

Owns: its command line, and the question whether it is ready. Needs the package `sglang_router`.
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable

from launch.serve import HOST


def command(
    *,
    port: int,
    metrics_port: int,
    prefill: Iterable[tuple[str, int]],
    decode: Iterable[str],
    flags: Iterable[str] = (),
) -> list[str]:
    """prefill: each worker's URL and its `--disaggregation-bootstrap-port`. metrics_port: the
    router always takes one, by default 29000."""
    words = [sys.executable, "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    words += ["--host", HOST, "--port", str(port), "--prometheus-port", str(metrics_port)]
    for url, bootstrap_port in prefill:
        words += ["--prefill", url, str(bootstrap_port)]
    for url in decode:
        words += ["--decode", url]
    return [*words, *flags]


def known_workers(url: str) -> int:
    """How many workers the router at `url` sends requests to. Its /health is 200 without any."""
    try:
        with urllib.request.urlopen(f"{url}/readiness", timeout=5) as response:
            return int(json.load(response)["healthy_workers"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0

"""Say for how long a node waits for the others, and what to do if they do not come.

Why: torch only says "1/2 clients joined", below twelve frames, and names neither the address nor
the flags. Upstream: distributed/bootstrap.py, _init_parallel_groups. Remove when: SGLang's error
names the address, the nodes and --dist-timeout.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.constants import default_pg_nccl_timeout, default_pg_timeout

logger = logging.getLogger(__name__)
TARGET = "sglang.srt.distributed.bootstrap._init_parallel_groups"


def apply(original: Callable[..., None], *, backend: str, **kwargs: Any) -> None:
    """Does nothing else on one node, whose ranks SGLang starts itself."""
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    if parallel.nnodes == 1:
        return original(backend=backend, **kwargs)
    seconds = parallel.dist_timeout or default_seconds(backend)
    log_wait(parallel, seconds)
    try:
        original(backend=backend, **kwargs)
    except (DistStoreError, DistNetworkError) as error:
        raise RuntimeError(f"{advice(parallel, seconds)} torch says: {error}") from error


def default_seconds(backend: str) -> int:
    """For how long torch waits if nobody says it: 600 s with NCCL, 1,800 s with gloo."""
    chosen = default_pg_nccl_timeout if backend == "nccl" else default_pg_timeout
    return int((chosen or default_pg_timeout).total_seconds())


def log_wait(parallel: Any, seconds: int) -> None:
    logger.info(
        "This is node %d of %d: it waits up to %d s for the others at %s (--dist-timeout)",
        parallel.node_rank,
        parallel.nnodes,
        seconds,
        parallel.dist_init_addr,
    )


def advice(parallel: Any, seconds: int) -> str:
    return (
        f"sglang-longcat: not all nodes met at {parallel.dist_init_addr} within {seconds} s. This "
        f"is node {parallel.node_rank} of {parallel.nnodes}. Start the same command on every node, "
        f"with --node-rank 0 to {parallel.nnodes - 1}, where --dist-init-addr is an address of "
        "node 0 that the others reach. --dist-timeout sets the seconds."
    )

"""Time of one all-reduce of a decode step, [T, hidden] bf16, by SGLang's kernel and by NCCL.

    python ci/allreduce_time.py --gpus 2 --batch 1,8,64,256 --out allreduce.csv
    python ci/allreduce_time.py --gpus 2,4,8 --out allreduce.csv

As an engine runs them: inside a CUDA graph, here 64 of the same kind in a row, median of --repeat
replays. There is no work between them, so no rank waits for a slower one: a lower bound of what an
all-reduce costs a step. engine_us: the kernel that SGLang takes for these GPUs and this size, named
in `kernel` (custom or nccl); nccl_us: NCCL in any case. `ci/project_scaling.py` reads the file.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HIDDEN = 3072  # of the published model
IN_A_ROW = 64
FIELDS = ("gpus", "device", "batch", "bytes", "kernel", "engine_us", "nccl_us")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gpus", default="2", help="ranks, say 2,4,8")
    parser.add_argument("--batch", default="1,8,30,64,256")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--out", type=Path, help="CSV; printed without it")
    args = parser.parse_args()
    sizes = [int(size) for size in args.gpus.split(",")]
    require(max(sizes))
    rows = [row for ranks in sizes for row in spawn(ranks, args)]
    with args.out.open("w", newline="") if args.out else os.fdopen(1, "w") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def require(gpus: int) -> None:
    import torch

    if (found := torch.cuda.device_count()) < gpus:
        sys.exit(f"--gpus asks for {gpus} CUDA GPUs, this machine shows {found}. Ask for fewer.")


def spawn(ranks: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One process a GPU; what rank 0 measured."""
    import torch.multiprocessing as multiprocessing

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(rank_main, (ranks, port, args, results), nprocs=ranks, join=True)
    rows: list[dict[str, Any]] = results.get()
    return rows


def rank_main(rank: int, ranks: int, port: int, args: argparse.Namespace, results: Any) -> None:
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks, device_id=device
    )
    custom = sglang_communicator(device)
    rows = [
        measure(int(batch), custom=custom, ranks=ranks, args=args)
        for batch in args.batch.split(",")
    ]
    if rank == 0:
        results.put(rows)
    custom.close()
    dist.barrier()
    dist.destroy_process_group()


def sglang_communicator(device: Any) -> Any:
    """What SGLang's tensor-parallel group would build; it coordinates over gloo."""
    import torch.distributed as dist
    from sglang.srt.distributed.device_communicators.custom_all_reduce import (
        dispatch_custom_allreduce,
    )

    group = dist.new_group(backend="gloo")
    return dispatch_custom_allreduce(group=group, device=device)(group=group, device=device)


def measure(batch: int, *, custom: Any, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torch.distributed as dist

    rows = torch.zeros((batch, args.hidden), dtype=torch.bfloat16, device="cuda")
    kernels = set()

    def as_in_an_engine() -> None:
        own = not custom.disabled and custom.should_custom_ar(rows)
        if torch.cuda.is_current_stream_capturing():
            kernels.add("custom" if own else "nccl")
        custom.custom_all_reduce(rows) if own else dist.all_reduce(rows)

    with custom.capture():  # when it ends, the ranks exchange the graph's inputs
        graph = capture(as_in_an_engine)
    return {
        "gpus": ranks,
        "device": torch.cuda.get_device_name(),
        "batch": batch,
        "bytes": rows.nbytes,
        "kernel": "+".join(sorted(kernels)),
        "engine_us": replay_us(graph, repeat=args.repeat),
        "nccl_us": replay_us(capture(lambda: dist.all_reduce(rows)), repeat=args.repeat),
    }


def capture(step: Callable[[], object]) -> Any:
    """A graph of IN_A_ROW steps; warmed up on the capturing stream, where kernels are compiled."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # thread_local: NCCL's watchdog queries events from a thread of its own meanwhile
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(IN_A_ROW):
            step()
    return graph


def replay_us(graph: Any, *, repeat: int) -> float:
    """Median over replays, per step. The first two replays are not counted."""
    import torch
    import torch.distributed as dist

    times = []
    for _ in range(repeat + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        dist.barrier()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / IN_A_ROW)
    return round(statistics.median(times[2:]), 2)


if __name__ == "__main__":
    main()

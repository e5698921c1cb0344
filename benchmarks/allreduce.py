"""Time of one all-reduce of a step, [T, hidden] bf16, by SGLang's kernel, NCCL and flashinfer.

    python -m benchmarks.allreduce --gpus 2 --batch 1,8,64,256 --out allreduce.csv
    python -m benchmarks.allreduce --gpus 2,4,8 --out allreduce.csv
    python -m benchmarks.allreduce --gpus 2,4 --batch 1,8,64,256,512,1024,2048,4096 --out fused.csv

They run as in an engine: inside a CUDA graph, here 64 of the same kind in a row, and the time is
the median of --repeat replays. There is no work between them, so no rank waits for a slower one:
the time is a lower bound of what an all-reduce costs a step.

engine_us: the kernel that SGLang chooses for these GPUs and this size, named in `kernel` (custom or
nccl). nccl_us: NCCL in any case. flashinfer_us: the kernel of flashinfer, which SGLang uses for
every sum that fits its workspace while allreduce fusion is on.

Two columns include the residual add and the RMSNorm that follow. unfused_us: the kernel of
engine_us, then fused_add_rmsnorm of sgl_kernel. fused_us: one kernel of flashinfer for all of it.
MAX_ROWS in `sglang_longcat/layers/allreduce_norm.py` should be the size up to which fused_us is
smaller. The columns of flashinfer are empty above the rows of its workspace (--fused-rows), or if
the workspace cannot be made; the reason is then on stderr. Its backend is "trtllm", which creates
no NVLink multicast. `benchmarks/projection.py` reads the file.
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

from longcat_kernels.lite import HIDDEN

IN_A_ROW = 64
EPS = 1e-5
TIMES = ("engine_us", "nccl_us", "flashinfer_us", "unfused_us", "fused_us")
FIELDS = ("gpus", "device", "batch", "bytes", "kernel", *TIMES)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--gpus", default="2", help="ranks, say 2,4,8")
    parser.add_argument("--batch", default="1,8,30,64,256")
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--fused-rows", type=int, default=2048, help="of flashinfer's workspace")
    parser.add_argument("--out", type=Path, help="CSV; printed without it")
    args = parser.parse_args()
    sizes = [int(size) for size in args.gpus.split(",")]
    require(max(sizes))
    with args.out.open("w", newline="") if args.out else os.fdopen(1, "w") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for ranks in sizes:
            writer.writerows(spawn(ranks, args))
            file.flush()  # the rows of two GPUs stay if four GPUs take too long


def require(gpus: int) -> None:
    import torch

    if (present := torch.cuda.device_count()) < gpus:
        sys.exit(f"--gpus asks for {gpus} CUDA GPUs, this machine shows {present}. Ask for fewer.")


def spawn(ranks: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Run one process per GPU. Returns the rows that rank 0 measured."""
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
    workspace = flashinfer_workspace(rank, ranks, args)
    rows = [
        {
            **measure(int(batch), custom=custom, ranks=ranks, args=args),
            **measure_flashinfer(int(batch), workspace, args=args),
        }
        for batch in args.batch.split(",")
    ]
    if rank == 0:
        results.put(rows)
    custom.close()
    if workspace is not None:
        workspace.destroy()
    dist.barrier()
    dist.destroy_process_group()


def sglang_communicator(device: Any) -> Any:
    """The communicator that SGLang's tensor-parallel group would build, coordinated over gloo."""
    import torch.distributed as dist
    from sglang.srt.distributed.device_communicators.custom_all_reduce import (
        dispatch_custom_allreduce,
    )
    from sglang.srt.distributed.parallel_state import init_distributed_environment

    ranks, rank = dist.get_world_size(), dist.get_rank()
    # SGLang's check of peer access needs the world group.
    init_distributed_environment(ranks, rank, local_rank=rank, backend="nccl")
    group = dist.new_group(backend="gloo")
    return dispatch_custom_allreduce(group=group, device=device)(group=group, device=device)


def flashinfer_workspace(rank: int, ranks: int, args: argparse.Namespace) -> Any:
    """The workspace. If one rank cannot make it, no rank has one, and stderr gets the reason."""
    import torch
    import torch.distributed as dist
    from flashinfer.comm import create_allreduce_fusion_workspace

    made, reason = None, ""
    try:
        made = create_allreduce_fusion_workspace(
            backend="trtllm",
            world_size=ranks,
            rank=rank,
            max_token_num=args.fused_rows,
            hidden_dim=args.hidden,
            dtype=torch.bfloat16,
            group=dist.group.WORLD,
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the other columns are measured
        reason = f"{type(error).__name__}: {error}"
    reasons: list[str] = [""] * ranks
    dist.all_gather_object(reasons, reason)
    if any(reasons):
        if rank == 0:
            sys.stderr.write(f"no flashinfer workspace on {ranks} GPUs: {reasons}\n")
        return None
    return made


def measure_flashinfer(batch: int, workspace: Any, *, args: argparse.Namespace) -> dict[str, Any]:
    """As SGLang calls it: with PDL, fp32 accumulation, and an early trigger of the next kernel."""
    import torch
    from flashinfer.comm import AllReduceFusionPattern, allreduce_fusion

    if workspace is None or batch > args.fused_rows:
        return {"flashinfer_us": "", "fused_us": ""}
    x, residual, y, total = torch.zeros(
        (4, batch, args.hidden), dtype=torch.bfloat16, device="cuda"
    ).unbind()
    weight = torch.ones_like(x[0])
    how = {"launch_with_pdl": True, "trigger_completion_at_end": False, "fp32_acc": True}

    def plain() -> None:
        pattern = AllReduceFusionPattern.kAllReduce
        allreduce_fusion(x, workspace, pattern, output=y, **how)

    def fused() -> None:
        allreduce_fusion(
            x,
            workspace,
            AllReduceFusionPattern.kARResidualRMSNorm,
            residual_in=residual,
            residual_out=total,
            norm_out=y,
            rms_gamma=weight,
            rms_eps=EPS,
            **how,
        )

    return {
        "flashinfer_us": replay_us(capture(plain), repeat=args.repeat),
        "fused_us": replay_us(capture(fused), repeat=args.repeat),
    }


def measure(batch: int, *, custom: Any, ranks: int, args: argparse.Namespace) -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from sgl_kernel import fused_add_rmsnorm

    rows = torch.zeros((batch, args.hidden), dtype=torch.bfloat16, device="cuda")
    residual, weight = torch.zeros_like(rows), torch.ones_like(rows[0])
    kernels = set()

    def as_in_an_engine() -> torch.Tensor:
        own = not custom.disabled and custom.should_custom_ar(rows)
        if torch.cuda.is_current_stream_capturing():
            kernels.add("custom" if own else "nccl")
        if own:
            result: torch.Tensor = custom.custom_all_reduce(rows)
            return result
        dist.all_reduce(rows)
        return rows

    def and_norm() -> None:
        fused_add_rmsnorm(as_in_an_engine(), residual, weight, EPS)

    with custom.capture():  # when it ends, the ranks exchange the graphs' inputs
        graph, normed = capture(as_in_an_engine), capture(and_norm)
    return {
        "gpus": ranks,
        "device": torch.cuda.get_device_name(),
        "batch": batch,
        "bytes": rows.nbytes,
        "kernel": "+".join(sorted(kernels)),
        "engine_us": replay_us(graph, repeat=args.repeat),
        "nccl_us": replay_us(capture(lambda: dist.all_reduce(rows)), repeat=args.repeat),
        "unfused_us": replay_us(normed, repeat=args.repeat),
    }


def capture(step: Callable[[], object]) -> Any:
    """A graph of IN_A_ROW steps. A warm-up on the capturing stream compiles the kernels."""
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # thread_local, because NCCL's watchdog thread queries events during the capture.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for _ in range(IN_A_ROW):
            step()
    return graph


def replay_us(graph: Any, *, repeat: int) -> float:
    """The time of one step: the median over replays. The first two replays are not counted."""
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

"""What a server would run on: this machine, or one that the user describes."""

from __future__ import annotations

import argparse
from dataclasses import replace

from sglang_longcat.planning.plan import MachineMemory
from sglang_longcat.planning.roofline import GPUS
from sglang_longcat.planning.sizing import GIB
from sglang_longcat.recipes.memory import UNKNOWN_HOST, Hardware


def described(args: argparse.Namespace) -> Hardware:
    """--gpu, --gpus, --host-memory. GPUs are idle."""
    gpus = 1 if args.gpus is None else args.gpus
    host = UNKNOWN_HOST if args.host_memory is None else int(args.host_memory * GIB)
    gpu = GPUS[args.gpu]
    memory = replace(MachineMemory.of_gpu(gpu.memory, gpu.shown), host=host)
    return Hardware(args.gpu, gpus, memory)


def detected(args: argparse.Namespace) -> Hardware:
    """As `doctor` detects it."""
    if args.gpus is not None or args.host_memory is not None:
        raise ValueError(
            "--gpus and --host-memory describe another machine; name its GPU too, with --gpu. To "
            "use fewer GPUs of this machine, set CUDA_VISIBLE_DEVICES."
        )
    from sglang_longcat.doctor import machine  # imports torch

    return machine.inspect().hardware()

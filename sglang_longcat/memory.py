"""The share of GPU memory that weights and KV cache get when --mem-fraction-static is not given.

SGLang keeps 10 GiB and more free on GPUs of over 60 GiB, for any model. This one needs less, and on
one 80 GB GPU those gigabytes are the KV cache: 70 GiB of weights leave 9. Registered with SGLang's
own registry of resolution steps; a fraction that the user gives is never touched.

A prefill that continues cached prefixes expands these, 28 KiB a token here, in pieces of
SGLANG_MAX_KV_CHUNK_CAPACITY tokens: 3.5 GiB by default, 0.9 with ours.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_longcat import hf_config

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)
STEP = "handle_gpu_memory_settings"

# From runs at full size, bf16 (free_gib in ci/results): with 256 less here and 2 a row, 1.8 GiB
# were left on an H100 at batch 24, and 0.4 on an H200 after batch 400 and a prompt of 250,000.
_BASE_MB = 2048  # attention workspaces, cuBLAS, fragmentation
_MB_PER_PREFILL_TOKEN = 0.27  # experts of top-12 at the widest point
_MB_PER_PREFIX_TOKEN = 28 / 1024
PREFIX_TOKENS = 32768  # expanded at a time, a quarter of SGLang's default
_MB_PER_GRAPH_ROW = 3.5  # 0.9 GiB for graphs of up to 256 rows
_MB_PER_RANK = 256  # custom all-reduce and NCCL buffers
# What the exchange with the replicas takes, where it goes is not known. Of 5.25 GiB that were free
# on two H200s 0.2 were left after one prompt of 4,096, on the rank without a request too.
_MB_ATTENTION_DP = 2048
# flashinfer's fused all-reduce, which SGLang gives memory after the KV cache: four buffers of
# [ranks, 2048, 3072] in bf16 (one to exchange, three to take turns), once for attention's ranks and
# once for the experts'.
_MB_FUSED_SUMS_PER_RANK = 2 * 4 * 2048 * 3072 * 2 / 2**20


def reserve_mb(
    prefill_tokens: int,
    graph_rows: int,
    ranks: int,
    *,
    attention_dp: bool = False,
    fused_sums: bool = False,
) -> float:
    """Memory to leave outside of the static share, in MiB."""
    return (
        _BASE_MB
        + _MB_PER_PREFILL_TOKEN * max(prefill_tokens, 2048)
        + _MB_PER_PREFIX_TOKEN * PREFIX_TOKENS
        + _MB_PER_GRAPH_ROW * graph_rows
        + (_MB_PER_RANK * ranks if ranks > 1 else 0)
        + (_MB_ATTENTION_DP if attention_dp else 0)
        + (_MB_FUSED_SUMS_PER_RANK * ranks if fused_sums and ranks > 1 else 0)
    )


def settle(server_args: ServerArgs, previous: Callable[[ServerArgs], None]) -> None:
    """SGLang's step, then our fraction where it chose one itself and ours is larger."""
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        model_config_of,
        resolving_view,
    )
    from sglang.srt.environ import envs
    from sglang.srt.utils import get_device_memory_capacity

    cfg = resolving_view(server_args)
    chosen_by_user = cfg.mem_fraction_static is not None
    previous(server_args)
    cfg = resolving_view(server_args)
    if chosen_by_user or cfg.device != "cuda":
        return
    if not hf_config.is_served_by_us(model_config_of(server_args).hf_config):
        return
    memory = get_device_memory_capacity(cfg.device)
    prefill = cfg.chunked_prefill_size
    prefill = prefill if prefill > 0 else cfg.max_prefill_tokens
    reserve = reserve_mb(
        prefill,
        cfg.cuda_graph_config.decode.max_bs or 0,
        cfg.tp_size,
        attention_dp=cfg.attn_dp_size > 1,
        fused_sums=cfg.flashinfer_allreduce_fusion_backend is not None,
    )
    fraction = round(1 - reserve / memory, 3)
    if fraction > cfg.mem_fraction_static:
        logger.info("mem_fraction_static %s -> %s", cfg.mem_fraction_static, fraction)
        declare_resolution(server_args, "sglang_longcat.memory", mem_fraction_static=fraction)
        if not envs.SGLANG_MAX_KV_CHUNK_CAPACITY.is_set():
            envs.SGLANG_MAX_KV_CHUNK_CAPACITY.set(PREFIX_TOKENS)


@functools.cache
def register() -> None:
    """Once per process: the registry keeps every function it is given."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook(STEP)(settle)

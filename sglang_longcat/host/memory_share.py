"""The share of GPU memory that weights and KV cache get when --mem-fraction-static is not given.

SGLang keeps 10 GiB and more free on GPUs of over 60 GiB, for any model. This one needs less
(`planning/reserve.py`), and on one 80 GB GPU those gigabytes are the KV cache: 70 GiB of weights
leave 9. Our step is in SGLang's own registry of resolution steps. It never changes a fraction that
the user gives.

A prefill that continues a cached prefix expands it, 28 KiB a token for this model, in pieces of
SGLANG_MAX_KV_CHUNK_CAPACITY tokens: 3.5 GiB with SGLang's default, 0.9 with ours, and 0.2 or 0.1
on GPUs of less than 35 GiB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang_longcat.host import resolution
from sglang_longcat.planning import reserve

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)
STEP = "handle_gpu_memory_settings"
PREFIX_TOKENS = resolution.OwnVariable("SGLANG_MAX_KV_CHUNK_CAPACITY")


def settle(server_args: ServerArgs, previous: Callable[[ServerArgs], None]) -> None:
    """Runs SGLang's step, then sets our fraction if SGLang chose its own and ours is larger."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view
    from sglang.srt.utils import get_device_memory_capacity

    PREFIX_TOKENS.release()
    cfg = resolving_view(server_args)
    chosen_by_user = cfg.mem_fraction_static is not None
    previous(server_args)
    cfg = resolving_view(server_args)
    if chosen_by_user or not resolution.is_ours_on_cuda(server_args):
        return
    gpu_mb = get_device_memory_capacity(cfg.device)
    chunk = cfg.chunked_prefill_size
    reserve_mb = reserve.runtime_reserve_mb(
        prefill_tokens=chunk if chunk > 0 else cfg.max_prefill_tokens,
        graph_rows=cfg.cuda_graph_config.decode.max_bs or 0,
        window=reserve.window_tokens(
            cfg.speculative_algorithm, cfg.speculative_num_draft_tokens, cfg.speculative_num_steps
        ),
        requests=cfg.max_running_requests,
        ranks=cfg.tp_size,
        gpu_mb=gpu_mb,
        attention_dp=cfg.attn_dp_size,
        fused_allreduce=cfg.flashinfer_allreduce_fusion_backend is not None,
    )
    fraction = round(1 - reserve_mb / gpu_mb, 3)
    if fraction > cfg.mem_fraction_static:
        logger.info("mem_fraction_static %s -> %s", cfg.mem_fraction_static, fraction)
        declare_resolution(
            server_args, "sglang_longcat.host.memory_share", mem_fraction_static=fraction
        )
        PREFIX_TOKENS.set_unless_given(reserve.prefix_tokens(gpu_mb))


def register() -> None:
    resolution.wrap(STEP, settle)

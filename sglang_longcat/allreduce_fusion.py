"""Which engines sum over ranks, add the residual and norm in one kernel (flashinfer's).

SGLang switches it on by itself for a list of architectures without this one, and then with backend
"auto", which may create NVLink multicast objects; "trtllm" maps the memory of the other GPUs of one
machine instead. A step of SGLang's registry of resolution steps chooses it where a user has chosen
nothing; --enforce-disable-flashinfer-allreduce-fusion switches it off.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang_longcat import hf_config

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

logger = logging.getLogger(__name__)
STEP = "handle_model_specific_adjustments"
BACKEND = "trtllm"
RANKS = (2, 4, 8)  # that the kernel is compiled for
# Four buffers of [ranks, 2048, 3072] in bf16 (one to exchange, three to take turns), once for
# attention's ranks and once for the experts'.
MB_PER_RANK = 2 * 4 * 2048 * 3072 * 2 / 2**20


def settle(server_args: ServerArgs, previous: Callable[[ServerArgs], None]) -> None:
    """SGLang's step, then our backend where nobody chose and it applies."""
    from sglang.srt.arg_groups.overrides import (
        declare_resolution,
        model_config_of,
        resolving_view,
    )

    previous(server_args)
    cfg = resolving_view(server_args)
    if cfg.flashinfer_allreduce_fusion_backend is not None or not applies(cfg):
        return
    if hf_config.is_served_by_us(model_config_of(server_args).hf_config):
        logger.info("flashinfer_allreduce_fusion_backend -> %s", BACKEND)
        declare_resolution(
            server_args,
            "sglang_longcat.allreduce_fusion",
            flashinfer_allreduce_fusion_backend=BACKEND,
        )


def applies(cfg: Any) -> bool:
    """cfg: SGLang's view of the server arguments. One machine of Hopper or Blackwell GPUs that map
    each other's memory, and every sum over all of its ranks."""
    from sglang.srt.runtime_context import attn_dp_enabled_of, get_platform

    return (
        cfg.device == "cuda"
        and (get_platform().is_sm90 or get_platform().is_sm100)
        and cfg.tp_size in RANKS
        and cfg.nnodes == 1
        and not attn_dp_enabled_of(cfg)
        and cfg.attn_cp_size == 1
        and not cfg.disable_custom_all_reduce
        and not cfg.enable_deterministic_inference
        and not cfg.enforce_disable_flashinfer_allreduce_fusion
    )


def workspace_mb(cfg: Any) -> float:
    """MiB that SGLang allocates on each GPU for it, after the KV cache. For the memory step, which
    comes before this one."""
    chosen = cfg.flashinfer_allreduce_fusion_backend is not None
    return MB_PER_RANK * cfg.tp_size if applies(cfg) or (chosen and cfg.tp_size > 1) else 0.0


@functools.cache
def register() -> None:
    """Once per process: the registry keeps every function it is given."""
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    register_resolution_hook(STEP)(settle)

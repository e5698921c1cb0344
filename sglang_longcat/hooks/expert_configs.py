"""Give SGLang's expert GEMM the tile sizes measured for this model's shapes.

Why: SGLang has none in bf16 for 256 experts of 1,024 columns (one GPU), nor for the shares of them
that two, four or eight ranks hold. It takes 16 x 32 x 64 for up to 256 tokens and 64 x 64 x 32
beyond.
Upstream: layers/moe/moe_runner/triton_utils/fused_moe_triton_config.py, get_moe_configs, which
looks for files in SGLang's own folder or in SGLANG_MOE_CONFIG_DIR.
Remove when: SGLang ships files for these shapes, or takes several folders.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from sglang_longcat.expert_configs import Configs, shipped

TARGET = "sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe_triton_config.get_moe_configs"


def apply(
    original: Callable[..., Configs | None],
    E: int,
    N: int,
    dtype: str | None,
    block_n: int | None = 0,
    block_k: int | None = 0,
    per_channel_quant: bool = False,
    down_moe: bool = False,
) -> Configs | None:
    """Tile sizes by number of tokens. None: SGLang takes its defaults. A folder that the user names
    in SGLANG_MOE_CONFIG_DIR wins."""
    configs = None
    if "SGLANG_MOE_CONFIG_DIR" not in os.environ and _is_ours():
        configs = shipped(_name(E, N, dtype, (block_n, block_k), per_channel_quant, down_moe))
    if configs is not None:
        return configs
    return original(E, N, dtype, block_n, block_k, per_channel_quant, down_moe=down_moe)


def _is_ours() -> bool:
    """Our model, and no deterministic inference, which needs one tile size for all batches."""
    from sglang_longcat.host.hf_config import is_serving_us
    from sglang_longcat.layers.step import is_deterministic

    return not is_deterministic() and is_serving_us()


def _name(
    experts: int,
    columns: int,
    dtype: str | None,
    block: Sequence[int | None],
    per_channel: bool,
    down: bool,
) -> Any:
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config as upstream

    return upstream.get_config_file_name(
        experts, columns, dtype, list(block), per_channel, down_moe=down
    )

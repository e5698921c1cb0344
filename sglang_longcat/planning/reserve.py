"""Memory that the model needs outside of weights and KV cache: what --mem-fraction-static leaves.

Owns: this arithmetic, and SGLang's defaults of the two sizes that it depends on most. `memory.py`
tells SGLang; `estimate`, `doctor` and `benchmarks/scaling.py` expect it. `attention_dp` counts
replicas, as in `sizing`. Knows neither SGLang nor torch.
"""

from __future__ import annotations

# From runs at full size, bf16 (free_gib in benchmarks/results): with 256 less here and 2 a row, 1.8
# GiB were left on an H100 at batch 24, and 0.4 on an H200 after batch 400 and a prompt of 250,000.
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
    attention_dp: int = 1,
    fused_sums: bool = False,
) -> float:
    """Memory to leave outside of the static share, in MiB."""
    return (
        _BASE_MB
        + _MB_PER_PREFILL_TOKEN * max(prefill_tokens, 2048)
        + _MB_PER_PREFIX_TOKEN * PREFIX_TOKENS
        + _MB_PER_GRAPH_ROW * graph_rows
        + (_MB_PER_RANK * ranks if ranks > 1 else 0)
        + (_MB_ATTENTION_DP if attention_dp > 1 else 0)
        + (_MB_FUSED_SUMS_PER_RANK * ranks if fused_sums and ranks > 1 else 0)
    )


def defaults(gpu_mb: float, ranks: int) -> tuple[int, int]:
    """(tokens of a prefill, rows of the largest CUDA graph) of SGLang 0.5.23 where nobody says, on
    a GPU of 60 GiB or more (arg_groups/memory_hook.py, handle_gpu_memory_settings)."""
    if gpu_mb >= 160 * 1024:
        return 16384, 512
    return 8192, 256 if ranks < 4 else 512


def default_mb(gpu_mb: float, ranks: int, *, attention_dp: int = 1) -> float:
    """`reserve_mb` of a server with SGLang's defaults."""
    return reserve_mb(*defaults(gpu_mb, ranks), ranks, attention_dp=attention_dp)

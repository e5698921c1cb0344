"""The runtime reserve: GPU memory that a server needs beside weights and KV cache, outside of
--mem-fraction-static. It holds activations, workspaces, CUDA graphs and buffers of collectives.

Owns: this arithmetic, and SGLang's defaults of the two sizes that it depends on most.
`host/memory_share.py` gives the result to SGLang; `plan` and `benchmarks/scaling.py` reckon with
it. `attention_dp` counts replicas of attention, as in `sizing`. Knows neither SGLang nor torch.
"""

from __future__ import annotations

from longcat_kernels.lite import HIDDEN, VOCAB

# Measured with full-size bf16 runs (free_gib in benchmarks/results). With a base of 256 MiB less
# and 2 MiB a graph row, 1.8 GiB were left on an H100 at batch 24, and 0.4 GiB on an H200 after
# batch 400 and a prompt of 250,000 tokens.
_BASE_MB = 2048  # attention workspaces, cuBLAS, fragmentation
_MB_PER_PREFILL_TOKEN = 0.27  # activations of top-12 experts, the widest point of a layer
_MB_PER_PREFIX_TOKEN = 28 / 1024
PREFIX_TOKENS = 32768  # of a cached prefix, expanded at a time; a quarter of SGLang's default
_MB_PER_GRAPH_ROW = 3.5  # 0.9 GiB for graphs of up to 256 rows
# With speculation a graph has a row per token of each request's verify window. A further row has
# activations, and logits: in bf16 from the GEMM, in fp32 in the buffer that SGLang's graphs share
# (graph_shared_output.py), and at most three more in fp32 while eagle_sample (eagle_utils.py)
# samples: the probabilities, its draft_probs, and the copy that our min_p filters. Reckoned from
# the code, not measured: 2.5 MiB a row, 11 MiB a request of four tokens.
_MB_PER_WINDOW_ROW = _MB_PER_PREFILL_TOKEN + VOCAB * (2 + 4 + 3 * 4) / 2**20
WINDOW = 4  # tokens of a verify window of three drafts
DRAFTING_REQUESTS = 48  # SGLang's --max-running-requests with speculation, if the user gives none
_MB_PER_RANK = 256  # buffers of custom all-reduce and NCCL
# Used by a server with replicas of attention; we do not know what allocates it. Of 5.25 GiB that
# were free on two H200s, 0.2 GiB were left after one prompt of 4,096 tokens, also on the rank
# without a request.
_MB_ATTENTION_DP = 2048
# flashinfer's fused all-reduce, whose memory SGLang allocates after the KV cache: four buffers of
# [ranks, 2048, hidden] in bf16 (one to exchange, three in rotation), once for attention's ranks and
# once for those of the experts.
_MB_FUSED_ALLREDUCE_PER_RANK = 2 * 4 * 2048 * HIDDEN * 2 / 2**20


def runtime_reserve_mb(
    prefill_tokens: int,
    graph_rows: int,
    ranks: int,
    *,
    attention_dp: int = 1,
    fused_allreduce: bool = False,
    window: int = 1,
) -> float:
    """In MiB, for prefills of so many tokens and CUDA graphs of up to `graph_rows` requests with
    `window` tokens each (1 without speculation)."""
    return (
        _BASE_MB
        + _MB_PER_PREFILL_TOKEN * max(prefill_tokens, 2048)
        + _MB_PER_PREFIX_TOKEN * PREFIX_TOKENS
        + (_MB_PER_GRAPH_ROW + _MB_PER_WINDOW_ROW * (window - 1)) * graph_rows
        + (_MB_PER_RANK * ranks if ranks > 1 else 0)
        + (_MB_ATTENTION_DP if attention_dp > 1 else 0)
        + (_MB_FUSED_ALLREDUCE_PER_RANK * ranks if fused_allreduce and ranks > 1 else 0)
    )


def default_prefill_and_graph_rows(gpu_mb: float, ranks: int) -> tuple[int, int]:
    """(tokens of a prefill, rows of the largest CUDA graph) that SGLang 0.5.23 chooses without
    flags on a GPU of 60 GiB or more (arg_groups/memory_hook.py, handle_gpu_memory_settings)."""
    if gpu_mb >= 160 * 1024:
        return 16384, 512
    return 8192, 256 if ranks < 4 else 512


def drafting_graph_rows(graph_rows: int, max_running_requests: int | None) -> int:
    """Requests of the largest graph with speculation. SGLang limits the requests after it has
    settled memory, and then captures no graph of more."""
    return min(graph_rows, max_running_requests or DRAFTING_REQUESTS)


def default_runtime_reserve_mb(
    gpu_mb: float, ranks: int, *, attention_dp: int = 1, draft: bool = False
) -> float:
    """`runtime_reserve_mb` of a server with SGLang's defaults; draft: with three drafts a step."""
    prefill_tokens, graph_rows = default_prefill_and_graph_rows(gpu_mb, ranks)
    return runtime_reserve_mb(
        prefill_tokens,
        drafting_graph_rows(graph_rows, None) if draft else graph_rows,
        ranks,
        attention_dp=attention_dp,
        window=WINDOW if draft else 1,
    )

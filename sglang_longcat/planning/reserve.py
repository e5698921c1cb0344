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
# (GiB of the GPU at least, tokens of a cached prefix that are expanded at a time): 0.9 GiB, 0.2 or
# 0.1, where SGLang keeps 3.5. With 0.9 a GPU of 24 GB had no room for a KV cache.
# Smaller pieces only take more steps: SGLang shares a piece out to the requests of a prefill.
_PREFIX_TOKENS = ((35, 32768), (28, 8192), (0, 4096))
_MB_PER_GRAPH_ROW = 3.5  # 0.9 GiB for graphs of up to 256 rows
# With speculation a graph has a row per token of each request's verify window. A further row has
# activations, and logits: in bf16 from the GEMM, in fp32 in the buffer that SGLang's graphs share
# (graph_shared_output.py), and at most three more in fp32 while eagle_sample (eagle_utils.py)
# samples: the probabilities, its draft_probs, and the copy that our min_p filters. Reckoned from
# the code, not measured: 2.5 MiB a row, 11 MiB a request of four tokens.
_MB_PER_WINDOW_ROW = _MB_PER_PREFILL_TOKEN + VOCAB * (2 + 4 + 3 * 4) / 2**20
WINDOW = 4  # tokens of a verify window of three drafts
NGRAM_WINDOW = 12  # SGLang's --speculative-num-draft-tokens for NGRAM, if the user gives none
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

# (GiB of the GPU at least, tokens of a prefill, graph rows of up to 3 ranks, of more)
_DEFAULTS = (
    (160, 16384, 512, 512),
    (60, 8192, 256, 512),
    (35, 4096, 32, 160),
    (20, 4096, 48, 160),
    (0, 2048, 8, 8),
)


def runtime_reserve_mb(
    prefill_tokens: int,
    graph_rows: int,
    ranks: int,
    *,
    gpu_mb: float,
    attention_dp: int = 1,
    fused_allreduce: bool = False,
    window: int = 1,
    requests: int | None = None,
) -> float:
    """In MiB, on a GPU of `gpu_mb` by the driver, for prefills of so many tokens and CUDA graphs of
    up to `graph_rows` requests. With speculation a request has `window` tokens, and no graph more
    requests than the server runs (requests: --max-running-requests)."""
    drafting = min(graph_rows, requests or DRAFTING_REQUESTS)
    # The rows of windows are reckoned. Servers that kept what plain graphs take have run with
    # drafts, so it is never less.
    graphs = max(
        _MB_PER_GRAPH_ROW * graph_rows,
        (_MB_PER_GRAPH_ROW + _MB_PER_WINDOW_ROW * (window - 1)) * drafting,
    )
    return (
        _BASE_MB
        + _MB_PER_PREFILL_TOKEN * max(prefill_tokens, 1024)
        + _MB_PER_PREFIX_TOKEN * prefix_tokens(gpu_mb)
        + graphs
        + (_MB_PER_RANK * ranks if ranks > 1 else 0)
        + (_MB_ATTENTION_DP if attention_dp > 1 else 0)
        + (_MB_FUSED_ALLREDUCE_PER_RANK * ranks if fused_allreduce and ranks > 1 else 0)
    )


def prefix_tokens(gpu_mb: float) -> int:
    """Of a cached prefix, expanded at a time: SGLANG_MAX_KV_CHUNK_CAPACITY of the server."""
    return next(tokens for gib, tokens in _PREFIX_TOKENS if gpu_mb >= gib * 1024)


def default_prefill_and_graph_rows(gpu_mb: float, ranks: int) -> tuple[int, int]:
    """(tokens of a prefill, rows of the largest CUDA graph) that SGLang 0.5.23 chooses without
    flags (arg_groups/memory_hook.py, handle_gpu_memory_settings)."""
    largest = next(row for row in _DEFAULTS if gpu_mb >= row[0] * 1024)
    _, prefill_tokens, few_ranks, many_ranks = largest
    return prefill_tokens, few_ranks if ranks < 4 else many_ranks


def window_tokens(algorithm: str | None, tokens: int | None, steps: int | None) -> int:
    """Tokens of a request in a verify step, 1 without speculation: what SGLang settles after
    memory (arg_groups/speculative_hook.py). tokens, steps: --speculative-num-draft-tokens and
    --speculative-num-steps, None if the user gives none. Drafts form a chain."""
    if algorithm is None:
        return 1
    if algorithm.upper() == "NGRAM":
        return tokens or NGRAM_WINDOW
    return steps + 1 if steps else tokens or WINDOW


def default_runtime_reserve_mb(
    gpu_mb: float, ranks: int, *, attention_dp: int = 1, draft: bool = False
) -> float:
    """`runtime_reserve_mb` of a server with SGLang's defaults; draft: with three drafts a step."""
    prefill_tokens, graph_rows = default_prefill_and_graph_rows(gpu_mb, ranks)
    return runtime_reserve_mb(
        prefill_tokens,
        graph_rows,
        ranks,
        gpu_mb=gpu_mb,
        attention_dp=attention_dp,
        window=WINDOW if draft else 1,
    )

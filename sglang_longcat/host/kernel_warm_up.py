"""Warms up our kernels while a server starts, so that its first request compiles none of them.

SGLang warms up its own kernels: it captures graphs and sends itself a request. Owns the translation
from the model's config and SGLang's flags to the kernels' sizes.
"""

from __future__ import annotations

import logging
import time

import torch

from longcat_kernels.lite import RING
from longcat_kernels.row_table import RowTable
from longcat_kernels.small_linear.workloads import Shape, model_shapes
from longcat_kernels.warm_up import Sizes, warm_up
from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.host.kv_cache import has_fp8_rows

logger = logging.getLogger(__name__)


def kernel_sizes(
    config: LongcatConfig,
    dtype: torch.dtype,
    rows: RowTable,
    draft_tokens: int | None,
    mlp_ranks: int = 1,
    attention_ranks: int = 1,
    context: int = 0,
    expert_ranks: int = 1,
    fp8_requests: int | None = None,
) -> Sizes:
    """rows: the n-gram rows of this rank. draft_tokens: width of a verify window
    (--speculative-num-draft-tokens), None without speculation. mlp_ranks, attention_ranks: how many
    ranks share the dense MLP and the heads; expert_ranks: how many share an expert's columns.
    context: the server's longest, in tokens. fp8_requests: of the largest decode step, where the KV
    cache has FP8 rows, which our kernel alone reads; None where it has not."""
    assert config.ngram is not None
    split_tokens = env.split_attention() if env.use_ours("mla_decode") else 0
    if fp8_requests is not None:
        split_tokens = fp8_requests * (draft_tokens or 1)
    return Sizes(
        dtype=dtype,
        hidden=config.hidden_size,
        experts=config.router_logits,
        routed=config.n_routed_experts,
        top_k=config.moe_topk,
        heads=config.num_attention_heads // attention_ranks,
        split_tokens=split_tokens,
        fp8_kv=fp8_requests is not None,
        context=context,
        q_lora=config.q_lora_rank,
        kv_lora=config.kv_lora_rank,
        nope=config.qk_nope_head_dim,
        rope=config.qk_rope_head_dim,
        values=config.v_head_dim,
        orders=tuple(config.ngram.order(i) for i in range(config.ngram.tables)),
        eos=len(config.eos_token_ids),
        ring=RING,
        columns=rows.columns,
        row_format=rows.format,
        fp8_inputs=config.quant is not None and config.quant.is_block_fp8,
        packed_group=_packed_group(config),
        expert_columns=config.expert_ffn_hidden_size // expert_ranks,
        windows=tuple(sorted({1, draft_tokens or 1})),
        projections=_projections(config, mlp_ranks, attention_ranks, draft_tokens is not None),
    )


def _packed_group(config: LongcatConfig) -> int | None:
    packed = config.quant.packed if config.quant is not None else None
    return packed.group_size if packed is not None and packed.symmetric else None


def _projections(
    config: LongcatConfig, mlp_ranks: int, attention_ranks: int, drafts: bool
) -> tuple[Shape, ...]:
    heads, query = config.num_attention_heads, config.qk_nope_head_dim + config.qk_rope_head_dim
    shapes = model_shapes(
        hidden=config.hidden_size,
        ffn=config.ffn_hidden_size,
        q_rank=config.q_lora_rank,
        latents=config.kv_lora_rank + config.qk_rope_head_dim,
        queries=heads * query,
        values=heads * config.v_head_dim,
        mlp_ranks=mlp_ranks,
        attention_ranks=attention_ranks,
    )
    draft = Shape("eh", "linear", config.hidden_size, 2 * config.hidden_size)
    return (*shapes, draft) if drafts else shapes


def server_sizes(config: LongcatConfig, dtype: torch.dtype, rows: RowTable) -> Sizes:
    """`kernel_sizes` for the flags of this server, on this rank."""
    from sglang.srt.runtime_context import get_parallel, get_server_args, process_model_config

    draft_tokens = get_server_args().speculative_num_draft_tokens
    parallel, context = get_parallel(), process_model_config().context_len
    return kernel_sizes(
        config,
        dtype,
        rows,
        draft_tokens,
        mlp_ranks=parallel.tp_size,
        attention_ranks=parallel.attn_tp_size,
        context=context,
        expert_ranks=parallel.moe_tp_size,
        fp8_requests=_requests_of_a_step() if has_fp8_rows() else None,
    )


def _requests_of_a_step() -> int:
    """The most that one decodes, as far as the flags say: requests, or rows of the largest graph.
    A larger step compiles its variant when it comes."""
    from sglang.srt.arg_groups.overrides import resolved_view
    from sglang.srt.runtime_context import get_server_args

    args = resolved_view(get_server_args())
    return max(args.max_running_requests or 1, args.cuda_graph_config.decode.max_bs or 1)


def warm_up_kernels(config: LongcatConfig, dtype: torch.dtype, rows: RowTable, device: str) -> None:
    """Compiles, or loads from Triton's cache, every kernel that this server will launch. Logs one
    line. Does nothing on a CPU."""
    from sglang.srt.runtime_context import get_parallel

    if torch.device(device).type != "cuda":
        return
    begin = time.perf_counter()
    count = warm_up(device, server_sizes(config, dtype, rows))
    if get_parallel().tp_rank == 0:
        seconds = time.perf_counter() - begin
        logger.info("Triton kernels: %d variants ready in %.2f s", count, seconds)

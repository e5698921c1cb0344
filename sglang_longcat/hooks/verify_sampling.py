"""Make penalties and min_p mean the same with speculation as without.

Why: SGLang counts one token a step for its penalties, however many were accepted, applies the same
counts to a whole window, and leaves min_p out. A penalised answer then differs from the one without
speculation. Here each row of a window answers to all tokens before it.
Upstream: speculative/eagle_utils.py, eagle_sample (all of EAGLE, NEXTN, STANDALONE and NGRAM), "a
relaxed version of penalties". This hook does the work first, and takes out of SGLang's inputs what
SGLang would otherwise apply again.
Remove when: eagle_sample counts accepted and drafted tokens, and filters by min_p.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import torch

from sglang_longcat.speculation.window_sampling import (
    Penalties,
    RecentTokens,
    add_recent,
    count_output,
    is_unlikely,
    penalize,
)

TARGET = "sglang.srt.speculative.eagle_utils.eagle_sample"

# By request pool: the tokens that the host may not know yet.
_recent: weakref.WeakKeyDictionary[Any, RecentTokens] = weakref.WeakKeyDictionary()


def apply(
    original: Callable[..., Any],
    verify: Any,
    batch: Any,
    output: Any,
    grammar: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    info = batch.sampling_info
    if batch.forward_mode.is_idle() or not _is_concerned(info):
        return original(verify, batch, output, grammar, *args, **kwargs)
    info = copy.copy(info)  # the batch's own keeps its values for the next step
    width = verify.draft_token_num
    if info.acc_additive_penalties is not None:
        window = verify.draft_token.view(-1, width).long()
        _penalize(batch, window, output.next_token_logits)
        info.acc_additive_penalties = info.acc_scaling_penalties = None
    if info.need_min_p_sampling:
        output = _apply_min_p(output, info, grammar, width)
        grammar = None  # applied
    batch = copy.copy(batch)
    batch.sampling_info = info
    return original(verify, batch, output, grammar, *args, **kwargs)


def _is_concerned(info: Any) -> bool:
    from sglang_longcat.host.hf_config import is_serving_us

    wanted = info.acc_additive_penalties is not None or info.need_min_p_sampling
    return wanted and is_serving_us()


def _penalize(batch: Any, window: torch.Tensor, logits: torch.Tensor) -> None:
    """Change logits [B * N, vocab] in place; window: [B, N] tokens."""
    starts, slots = batch.seq_lens, batch.req_pool_indices.long()
    pool = batch.req_to_token_pool
    if pool not in _recent:
        rows = len(pool.req_to_token)
        _recent[pool] = RecentTokens(rows, window.shape[1], window.device)
    prompts = [len(request.origin_input_ids) for request in batch.reqs]
    outputs = [request.output_ids for request in batch.reqs]
    counts, known = count_output(logits.shape[1], outputs, prompts, starts)
    add_recent(counts, known, *_recent[pool].read(slots, starts))
    _recent[pool].write(slots, starts, window)
    penalize(
        logits.view(*window.shape, -1),
        counts,
        window,
        told=starts - torch.tensor(prompts, device=starts.device),
        # SGLang lifts its ban on stop tokens late, never early, because it counts fewer tokens. So
        # -inf marks every row that may still need the ban.
        stops=torch.isneginf(batch.sampling_info.acc_additive_penalties),
        penalties=_requested_penalties(batch),
    )


def _requested_penalties(batch: Any) -> Penalties:
    requests = [request.sampling_params for request in batch.reqs]
    columns = [
        (p.frequency_penalty, p.presence_penalty, p.repetition_penalty, p.min_new_tokens)
        for p in requests
    ]
    table = torch.tensor(columns, dtype=torch.float32).to(batch.seq_lens.device)
    return Penalties(*table.split(1, dim=1))


def _apply_min_p(output: Any, info: Any, grammar: Any, width: int) -> Any:
    """`output` with filtered logits. min_p compares with the largest probability, so everything
    that SGLang applies to the logits before it is applied here, and marked as done in `info`."""
    logits = output.next_token_logits
    if info.logit_bias is not None:
        logits.add_(info.logit_bias.repeat_interleave(width, dim=0))
        info.logit_bias = None
    if grammar is not None:
        grammar.apply(logits)
    output = dataclasses.replace(output, next_token_logits=_filtered(logits, info, width))
    info.need_min_p_sampling = info.need_top_k_sampling = info.need_top_p_sampling = False
    return output


def _filtered(logits: torch.Tensor, info: Any, width: int) -> torch.Tensor:
    """A copy of `logits` without the tokens that top_k, top_p and min_p rule out."""
    from sglang.srt.speculative import eagle_utils

    temperatures, top_ks, top_ps, min_ps = (
        values.repeat_interleave(width, dim=0)
        for values in (info.temperatures, info.top_ks, info.top_ps, info.min_ps)
    )
    probs = (logits.float() / temperatures).softmax(dim=1)
    if info.need_top_k_sampling:
        probs = eagle_utils.top_k_renorm_prob(probs, top_ks)
    if info.need_top_p_sampling:
        probs = eagle_utils.top_p_renorm_prob(probs, top_ps)
    return logits.masked_fill(is_unlikely(probs, min_ps), float("-inf"))

"""The operators of speculative decoding on a chain of drafted tokens (topk 1), in torch.

Owns: the arithmetic. Each function has the contract of the sgl_kernel operator of its name, and
`speculative` registers it. Results are written to the arguments marked (out). This file knows torch
only.

A window is the N tokens per request that verification feeds: the token that is already decided,
then N-1 drafted tokens, each of which follows the one before it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _cells(requests: Tensor, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the cells starts[i] .. ends[i]-1 of row requests[i], for each i in
    turn."""
    lengths = (ends - starts).long()
    before = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    columns = starts.repeat_interleave(lengths) + torch.arange(len(before)) - before
    return requests.long().repeat_interleave(lengths), columns.long()


def assign_req_to_token_pool(
    requests: Tensor, table: Tensor, starts: Tensor, ends: Tensor, slots: Tensor, _width: int
) -> None:
    """table[requests[i], starts[i]:ends[i]] (out) = the next ends[i]-starts[i] elements of
    slots."""
    cells = _cells(requests, starts, ends)
    table[cells] = slots[: len(cells[0])].to(table.dtype)


def assign_extend_cache_locs(
    requests: Tensor, table: Tensor, starts: Tensor, ends: Tensor, slots: Tensor, _width: int
) -> None:
    """The reverse: slots (out) = the cells of `table`, request after request."""
    cells = table[_cells(requests, starts, ends)]
    slots[: len(cells)] = cells.to(slots.dtype)


def assign_draft_cache_locs_contiguous(
    requests: Tensor, table: Tensor, lengths: Tensor, slots: Tensor, _width: int, k: int, steps: int
) -> None:
    """slots (out) = the k * steps cells after the first lengths[i] cells of each request."""
    assign_extend_cache_locs(requests, table, lengths, lengths + k * steps, slots, _width)


def build_tree_kernel_efficient(
    _parents: Tensor,
    _selected: Tensor,
    lengths: Tensor,
    mask: Tensor,
    positions: Tensor,
    index: Tensor,
    following: Tensor,
    sibling: Tensor,
    k: int,
    _depth: int,
    window: int,
    _mask_mode: int,
) -> None:
    """Windows as trees without branches. `mask` and all tensors after it are (out).

    lengths: [B]; mask: [B*N*N], which token of the window sees which; positions: [B*N]; index (row
    in the batch), following and sibling: [B, N], -1 for none.
    """
    if k != 1:
        raise NotImplementedError(f"topk {k}: the CPU builds chains only; use topk 1")
    steps = torch.arange(window)
    mask[: len(lengths) * window * window].view(-1, window, window).copy_(
        (steps <= steps[:, None]).expand(len(lengths), -1, -1)
    )
    positions.view(-1, window).copy_(lengths[:, None] + steps)
    index.copy_(torch.arange(index.numel()).view_as(index))
    following.copy_((steps + 1).where(steps + 1 < window, -1).expand_as(following))
    sibling.fill_(-1)


def reconstruct_indices_from_tree_mask(
    mask: Tensor,
    lengths: Tensor,
    positions: Tensor,
    index: Tensor,
    following: Tensor,
    sibling: Tensor,
    _requests: int,
    window: int,
) -> None:
    """The same (out) tensors from `mask`, which must be that of a chain."""
    chain = torch.empty(len(lengths) * window * window, dtype=torch.bool)
    build_tree_kernel_efficient(
        mask, mask, lengths, chain, positions, index, following, sibling, 1, 0, window, 0
    )
    if not torch.equal(mask[: len(chain)].bool(), chain):
        raise NotImplementedError("a tree of drafts: the CPU verifies chains only")


def verify_tree_greedy(
    predicts: Tensor,
    accepted: Tensor,
    counts: Tensor,
    candidates: Tensor,
    index: Tensor,
    _following: Tensor,
    _sibling: Tensor,
    choices: Tensor,
) -> None:
    """Accept drafted tokens as long as each equals the target's choice for its place.

    candidates, index, choices: [B, N], the window's tokens, their rows in the batch, and the
    target's choice after each. (out): counts [B], the number of accepted drafts; accepted [B, N],
    the rows of the decided token and of the accepted drafts, then -1; predicts [B*N], the target's
    choice at these rows.
    """
    agrees = candidates[:, 1:] == choices[:, :-1]
    _accept(predicts, accepted, counts, index, agrees, choices)


def _accept(
    predicts: Tensor,
    accepted: Tensor,
    counts: Tensor,
    index: Tensor,
    agrees: Tensor,
    tokens: Tensor,
) -> None:
    counts.copy_(agrees.int().cumprod(1).sum(1))
    inside = torch.arange(index.shape[1]) <= counts[:, None]
    accepted.copy_(index.where(inside, -1))
    predicts[index[inside]] = tokens[inside].to(predicts.dtype)


def tree_speculative_sampling_target_only(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    deterministic: bool = True,
) -> None:
    """As `verify_tree_greedy`, for tokens sampled from target_probs [B, N, vocab].

    Draft j is accepted with its target probability. The token after the last accepted draft is
    sampled from the target's distribution there, without the rejected draft. The emitted tokens are
    then distributed as target_probs. Relaxed thresholds are not implemented.
    """
    if threshold_single != 1.0 or threshold_acc != 1.0:
        raise NotImplementedError(
            "--speculative-accept-threshold-single/-acc: the CPU verifies exactly; leave them at 1"
        )
    drafts = candidates[:, 1:].long()
    chances = target_probs[:, :-1].gather(2, drafts[..., None]).squeeze(2)
    agrees = uniform_samples[:, 1:] < chances
    last = agrees.int().cumprod(1).sum(1)
    rows = torch.arange(len(last))
    weights = target_probs[rows, last].clone()
    refused = last < drafts.shape[1]
    weights[rows[refused], drafts[rows[refused], last[refused]]] = 0.0
    cumulative = weights.cumsum(1)
    point = uniform_samples_for_final_sampling[:, None] * cumulative[:, -1:]
    final = torch.searchsorted(cumulative, point, right=True).clamp_max(weights.shape[1] - 1)
    tokens = torch.cat((drafts, drafts[:, :1]), dim=1)
    tokens[rows, last] = final.squeeze(1)
    _accept(predicts, accept_index, accept_token_num, retrive_index, agrees, tokens)


def top_k_renorm_prob(probs: Tensor, top_k: Tensor) -> Tensor:
    """probs [T, vocab], with all except the top_k [T] most likely tokens set to 0, renormalised."""
    place = top_k.long().clamp(1, probs.shape[1])[:, None] - 1
    least = probs.sort(dim=1, descending=True).values.gather(1, place)
    kept = probs.where(probs >= least, 0)
    return kept / kept.sum(1, keepdim=True)


def top_p_renorm_prob(probs: Tensor, top_p: Tensor) -> Tensor:
    """The same with the fewest tokens whose probabilities sum to top_p [T] or more."""
    ranked = probs.sort(dim=1, descending=True)
    needed = ranked.values.cumsum(1) - ranked.values < top_p[:, None]
    kept = torch.zeros_like(probs).scatter(1, ranked.indices, ranked.values.where(needed, 0))
    return kept / kept.sum(1, keepdim=True)


def fill_bonus_tokens(tokens: Tensor, counts: Tensor, bonus: Tensor, stride: int) -> None:
    """bonus[i] (out) = the last of the counts[i] tokens of request i, which start at i * stride."""
    first = torch.arange(len(counts)) * stride
    bonus.copy_(tokens.flatten()[first + counts.long() - 1])


def fill_accept_out_cache_loc(accepted: Tensor, slots: Tensor, taken: Tensor) -> None:
    """taken (out) = the slots of the accepted rows, without gaps, from the front."""
    rows = accepted.flatten()
    accepted_slots = slots[rows[rows >= 0].long()]
    taken[: len(accepted_slots)] = accepted_slots


def copy_all_layer_kv_cache(
    _buffers: Tensor, _strides: Tensor, targets: Tensor, sources: Tensor
) -> None:
    """KV rows `sources` -> `targets`. SGLang's pools for K and V try it once at start-up, with row
    0 for both. Only accepted branches of trees are moved, and the CPU has no trees."""
    if not torch.equal(targets, sources):
        raise NotImplementedError("a tree of drafts: the CPU moves no KV rows; use topk 1")

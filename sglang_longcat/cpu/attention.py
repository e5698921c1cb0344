"""Absorbed multi-head latent attention in torch: which KV slots a query sees, and the arithmetic.

Owns: `plan_decode`, `plan_window`, `plan_extend` (once per forward) and `attend` (once per layer).
This file knows torch only; `mla_backend` passes it SGLang's batches and KV pool.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from longcat_kernels.kv_rows import is_fp8, unpack

# Query rows per block. It limits the score matrix (128 rows x 64 heads x 8192 slots = 256 MiB
# fp32), and skips the slots above the causal diagonal.
_BLOCK = 128


@dataclass(frozen=True)
class Group:
    """The queries `rows` of the batch: B requests of Q consecutive tokens each."""

    rows: slice  # B*Q of the batch's tokens
    slots: torch.Tensor  # [B, L] int64: KV slots of the L positions that the last query may reach
    visible: torch.Tensor  # [B, Q, L] bool: which of them each query sees


def plan_decode(
    req_to_token: torch.Tensor, requests: torch.Tensor, seq_lens: torch.Tensor
) -> list[Group]:
    """One new token per request, which sees positions 0 .. seq_len-1, in a single group.

    req_to_token: [R, C]; requests, seq_lens: [B]. A short row is padded with its own first slot,
    whose content is finite, so that a masked weight of 0 never multiplies NaN.
    """
    inside = torch.arange(int(seq_lens.max()))[None, :] < seq_lens[:, None]
    table = req_to_token[requests.long(), : inside.shape[1]].long()
    slots = torch.where(inside, table, table[:, :1])
    return [Group(rows=slice(0, len(slots)), slots=slots, visible=inside[:, None, :])]


def plan_window(
    req_to_token: torch.Tensor, requests: torch.Tensor, prefix_lens: torch.Tensor, width: int
) -> list[Group]:
    """A speculative window: `width` new tokens per request after prefix_lens cached ones, causal.

    req_to_token: [R, C]; requests, prefix_lens: [B]. One group, padded as in `plan_decode`.
    """
    (group,) = plan_decode(req_to_token, requests, prefix_lens + width)
    last = prefix_lens[:, None] + torch.arange(width)
    visible = torch.arange(group.slots.shape[1]) <= last[:, :, None]
    return [Group(rows=slice(0, len(requests) * width), slots=group.slots, visible=visible)]


def plan_extend(
    req_to_token: torch.Tensor,
    requests: torch.Tensor,
    prefix_lens: Sequence[int],
    extend_lens: Sequence[int],
) -> list[Group]:
    """extend_lens[i] new tokens after prefix_lens[i] cached ones, causal; one group per block.

    Any mixture of first chunks, later chunks, radix hits and single decode tokens works.
    """
    return list(_extend_groups(req_to_token, requests.tolist(), prefix_lens, extend_lens))


def _extend_groups(
    req_to_token: torch.Tensor,
    requests: Sequence[int],
    prefix_lens: Sequence[int],
    extend_lens: Sequence[int],
) -> Iterator[Group]:
    row = 0
    for request, prefix, length in zip(requests, prefix_lens, extend_lens, strict=True):
        for begin in range(0, length, _BLOCK):
            end = min(begin + _BLOCK, length)
            position = torch.arange(prefix + begin, prefix + end)
            visible = torch.arange(prefix + end)[None, :] <= position[:, None]
            slots = req_to_token[request, : prefix + end].long()
            yield Group(
                rows=slice(row + begin, row + end), slots=slots[None], visible=visible[None]
            )
        row += length


def attend(
    plan: Sequence[Group], q: torch.Tensor, kv: torch.Tensor, *, v_width: int, scale: float
) -> torch.Tensor:
    """o[t, h] = softmax_s(scale * <q[t, h], kv[s]>) @ kv[s, :v_width], s over visible slots.

    q: [T, H, D]; kv: [slots, D], one latent head shared by all H, or FP8 rows of `kv_rows`,
    [slots, bytes] uint8, whose rank is v_width; returns [T, H, v_width] in q.dtype. Scores, softmax
    and sum are fp32. Rows that no group covers stay zero.
    """
    out = q.new_zeros(*q.shape[:2], v_width)
    for group in plan:
        out[group.rows] = _attend_group(group, q[group.rows], kv, v_width, scale).to(q.dtype)
    return out


def _attend_group(
    group: Group, q: torch.Tensor, kv: torch.Tensor, v_width: int, scale: float
) -> torch.Tensor:
    (requests, queries, _), heads = group.visible.shape, q.shape[1]
    keys = kv[group.slots]
    keys = (unpack(keys, v_width) if is_fp8(keys) else keys).float()  # [B, L, D]
    q = q.float().reshape(requests, queries * heads, -1)
    scores = torch.bmm(q, keys.transpose(1, 2)).mul_(scale)  # [B, Q*H, L]
    hidden = ~group.visible.repeat_interleave(heads, dim=1)
    weights = scores.masked_fill_(hidden, float("-inf")).softmax(dim=-1)
    return torch.bmm(weights, keys[..., :v_width]).reshape(requests * queries, heads, v_width)

"""MLA decode in plain torch, one token at a time: the oracle of the kernels, and the CPU path."""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows


def mla_decode(
    q_nope: torch.Tensor,
    q_pe: torch.Tensor,
    latents: torch.Tensor,
    pages: torch.Tensor,
    requests: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    width: int = 1,
    w_vc: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(q_nope)
    rank = q_nope.shape[-1]
    kv_rows.parts(latents, rank, q_pe.shape[-1])  # refuses rows of another width
    for t in range(q_nope.shape[0]):
        rows = pages[requests[t // width], : int(positions[t]) + 1].long()
        keys = latents[rows]
        keys = (kv_rows.unpack(keys, rank) if kv_rows.is_fp8(keys) else keys).float()
        query = torch.cat([q_nope[t], q_pe[t]], dim=-1).float()
        weights = torch.softmax(scale * query @ keys.t(), dim=-1)
        out[t] = weights @ keys[:, :rank]
    if w_vc is None:
        return out
    return torch.einsum("thc,hcv->thv", out.float(), w_vc.float()).to(out.dtype)

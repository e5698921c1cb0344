"""Attention of a step by each kernel that the engine may take. For tools/tune_layer.py.

"split" is ours (`longcat_kernels.mla_decode`), "flashinfer" and "fa3" are what SGLang's backends of
these names call, over pages of one token. Owns their plans and calls.
"""

from __future__ import annotations

from typing import Any

import torch
from bench_mla_decode import plan

from layer_inputs import Inputs
from layer_space import Choice
from longcat_kernels.mla_decode import mla_decode, project_values
from longcat_kernels.mla_decode.workloads import RANK, SCALE
from longcat_kernels.mla_decode.workloads import Inputs as Cache

_WORKSPACE = 128 << 20  # bytes; no two attentions run at a time


class Attention:
    """`attention("fa3", i, j, query, w_vc)`: layer i's attention j, [T, heads, values]."""

    def __init__(self, step: Inputs) -> None:
        self.step = step
        requests, width = step.size.requests, step.size.width
        device = step.x.device
        context = step.caches[0][0].pages.shape[1]
        self.lengths = torch.full((requests,), context, dtype=torch.int32, device=device)
        self.queries = torch.arange(requests + 1, dtype=torch.int32, device=device) * width
        self.pages = [[one.pages[one.requests] for one in both] for both in step.caches]
        self.wrappers: list[list[Any]] = []
        if width == 1:  # a window's would be planned as a prefill
            workspace = torch.empty(_WORKSPACE, dtype=torch.uint8, device=device)
            self.wrappers = [[plan(workspace, one, width) for one in both] for both in step.caches]

    def __call__(
        self, choice: Choice, i: int, j: int, query: torch.Tensor, w_vc: torch.Tensor
    ) -> torch.Tensor:
        """query [T, heads, rank + rope]."""
        cache, q_nope, q_pe = self.step.caches[i][j], query[..., :RANK], query[..., RANK:]
        if choice == "split":
            rest = (cache.latents, cache.pages, cache.requests, cache.positions)
            width = self.step.size.width
            return mla_decode(q_nope, q_pe, *rest, scale=SCALE, width=width, w_vc=w_vc)
        if choice == "flashinfer":
            rows = cache.latents[:, None]
            out = self.wrappers[i][j].run(q_nope, q_pe, rows[..., :RANK], rows[..., RANK:])
        else:
            out = self._fa3(self.pages[i][j], cache, q_nope, q_pe)
        return project_values(out.view(q_nope.shape), w_vc)

    def _fa3(
        self, pages: torch.Tensor, cache: Cache, q_nope: torch.Tensor, q_pe: torch.Tensor
    ) -> torch.Tensor:
        from sglang.kernels.ops.attention.flash_attention_v3 import flash_attn_with_kvcache

        rows, width = cache.latents[:, None, None], self.step.size.width
        out: torch.Tensor = flash_attn_with_kvcache(
            q=q_pe,
            k_cache=rows[..., RANK:],
            v_cache=rows[..., :RANK],
            qv=q_nope,
            page_table=pages,
            cache_seqlens=self.lengths,
            cu_seqlens_q=self.queries,
            max_seqlen_q=width,
            softmax_scale=SCALE,
            causal=True,
        )
        return out

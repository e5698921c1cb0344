"""SGLang's `torch_native` attention backend, for MLA models.

Owns: the registration (two registries, no hook) and the translation of a ForwardBatch into a plan.
`attention` does the arithmetic, and SGLang's own torch_native serves models without MLA.
Why: without AMX, SGLang turns its CPU default `intel_amx` into `torch_native`
(srt/arg_groups/overrides.py:1294), which has no MLA. srt/models/deepseek_common/
attention_backend_handler.py has no entry for it and picks the triton rule, whose un-absorbed
prefill stores K and V of another shape than the latent pool's rows.
Remove when: SGLang's torch_native serves MLA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
from sglang.srt.models.deepseek_common.attention_forward_methods import AttnForwardMethod

from sglang_longcat.cpu.attention import (
    Group,
    attend,
    plan_decode,
    plan_extend,
    plan_window,
)
from sglang_longcat.kv_cache.pool import rows_of

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

NAME = "torch_native"


def register() -> str:
    for_other_models = ATTENTION_BACKENDS[NAME]

    def create(runner: ModelRunner) -> AttentionBackend:
        return TorchMLABackend(runner) if runner.use_mla_backend else for_other_models(runner)

    ATTENTION_BACKENDS[NAME] = create
    AttentionBackendRegistry.register(NAME, lambda attn, batch: AttnForwardMethod.MLA)
    return "attention: torch MLA, absorbed, fp32 softmax"


class TorchMLABackend(AttentionBackend):
    """Absorbed MLA over the latent pool [slots, 1, kv_lora_rank + rope] or over its FP8 rows,
    prefill and decode alike.

    forward(q [T, H*D] or [T, H, D], k [T, 1, D], v) stores k, then returns [T, H*kv_lora_rank].
    Speculative windows are chains (topk 1). `drafted` is for the decode steps of a draft model: the
    number of tokens of its chain that a query sees in addition to seq_lens, itself included.
    """

    def __init__(self, runner: ModelRunner, drafted: int = 0) -> None:
        super().__init__()
        self.drafted = drafted
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.plan: list[Group] = []

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        mode, table = forward_batch.forward_mode, self.req_to_token_pool.req_to_token
        requests, lengths = forward_batch.req_pool_indices, forward_batch.seq_lens
        if mode.is_idle():
            self.plan = []
        elif mode.is_decode():
            self.plan = plan_decode(table, requests, seq_lens=lengths + self.drafted)
        elif mode.is_target_verify():
            width = forward_batch.input_ids.shape[0] // len(requests)
            self.plan = plan_window(table, requests, prefix_lens=lengths, width=width)
        elif mode.is_draft_extend_v2():  # here seq_lens includes the window
            width = forward_batch.input_ids.shape[0] // len(requests)
            self.plan = plan_window(table, requests, prefix_lens=lengths - width, width=width)
        else:
            self.plan = plan_extend(
                table,
                requests,
                prefix_lens=forward_batch.extend_prefix_lens_cpu,
                extend_lens=forward_batch.extend_seq_lens_cpu,
            )

    def _forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        pool = self.token_to_kv_pool
        if save_kv_cache:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        out = attend(
            self.plan,
            q.view(-1, layer.tp_q_head_num, layer.qk_head_dim),
            rows_of(pool, layer.layer_id)[:, 0],
            v_width=layer.v_head_dim,
            scale=layer.scaling,
        )
        return out.flatten(1)

    forward_extend = forward_decode = _forward

    def get_cpu_graph_seq_len_fill_value(self) -> int:
        """Length of the dummy requests with which data-parallel attention pads a batch."""
        return 1

    def support_triton(self) -> bool:
        return False


class TorchMLADraftSteps:
    """One backend for each decode step of a draft chain, with the interface that SGLang expects."""

    def __init__(
        self, runner: ModelRunner, steps: int, kind: type[TorchMLABackend] = TorchMLABackend
    ) -> None:
        self.attn_backends = [kind(runner, drafted=i + 1) for i in range(steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)

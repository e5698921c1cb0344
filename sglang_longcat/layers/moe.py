"""Mixture of experts with identity experts, on SGLang's router weights and grouped GEMM.

    y = scale * (sum_{e routed} p_e E_e(x) + (sum_{e identity} p_e) x)

Both parts carry routed_scaling_factor. Identity slots get expert id -1, which the grouped GEMM
skips. So do the slots of rows that fill up a CUDA graph's batch: such a row holds an old token, for
which the GEMM would read the weights of some eight more experts. The identity part is added before
the output's all-reduce, by one of the ranks that are summed. Owns routing, with the ids of this
rank's experts, and the identity part. Weights, expert GEMM, and which rank holds which experts are
SGLang's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.dp_attention import is_dp_attention_enabled
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization.unquant import UnquantizedFusedMoEMethod
from sglang.srt.models.longcat_flash import LongcatFlashMoE

from longcat_kernels.expert_sum import add_identity_, finalize
from longcat_kernels.moe_router import Options, Routing, route, route_tokens, supports
from longcat_kernels.small_experts import Weights, is_faster
from longcat_kernels.small_experts import experts as small_experts
from longcat_kernels.small_experts import supports as supports_small
from sglang_longcat import env
from sglang_longcat.layers.constants import register_constant
from sglang_longcat.layers.fp8_inputs import accepts_pair, pair_of
from sglang_longcat.layers.operations import is_enabled
from sglang_longcat.layers.step import is_deterministic

if TYPE_CHECKING:
    from sglang.srt.configs import LongcatFlashConfig
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch

# Up to so many tokens (decode steps) one kernel adds expert outputs and identity part, and rounds.
# This saves one launch and one pass over x and the result. A prefill would have to hold its
# [T, top_k, hidden] twice, 600 MB each at 8,192 tokens.
MAX_FINALIZE_TOKENS = 256


@dataclass(frozen=True)
class Mixture:
    """An expert mixture before its last sum, which can add another term."""

    experts: torch.Tensor  # [T, top_k, hidden], router weights included, or their sum [T, hidden]
    expert_ids: torch.Tensor  # [T, top_k]; -1: not computed
    x: torch.Tensor | None  # None on ranks where another rank adds the identity part
    identity_weight: torch.Tensor | None

    def sum(self, addend: torch.Tensor | None = None) -> torch.Tensor:
        """[T, hidden], plus `addend` of that shape if there is one. Call it once: it may change
        `experts` in place."""
        if self.experts.dim() == 3:
            return finalize(self.experts, self.expert_ids, self.x, self.identity_weight, addend)
        if self.x is not None and self.identity_weight is not None:
            add_identity_(self.experts, self.x, self.identity_weight)
        return self.experts if addend is None else self.experts.add_(addend)


def kv_slots(rows: torch.Tensor, forward_batch: ForwardBatch) -> torch.Tensor | None:
    """KV slot of each row, by which the router knows padding. None where ranks have exchanged rows
    (attention DP): the slots of other ranks' rows are not known here, and SGLang masks padding of
    its own."""
    slots: torch.Tensor = forward_batch.out_cache_loc
    rows_exchanged = is_dp_attention_enabled() or len(slots) != len(rows)
    return None if rows_exchanged else slots


class LongcatMoE(LongcatFlashMoE):
    """`forward(x [T, hidden], route(x), adds_identity) -> Mixture`; x is not changed."""

    only_slot: torch.Tensor  # zeros [MAX_FINALIZE_TOKENS, 1]

    def __init__(self, config: LongcatFlashConfig, **options: Any) -> None:
        super().__init__(config=config, **options)
        runner = self.experts.moe_runner_config
        # The grouped GEMM skips slots with id -1 only if it expects experts of other ranks. It
        # expects them where two counts differ: 256 local experts of 384 that a token may choose.
        runner.num_experts = self.num_experts + self.zero_expert_num
        # The dense branch reads the same input, so the result must not be written over it.
        runner.inplace = False
        # For `use_expert_finalize`: the second GEMM multiplies by the router's weights either way.
        runner.no_combine_keep_router_weight = True
        self.ids_are_local = False
        self.held = self._take_over_ids()
        register_constant(self, "only_slot", torch.zeros(MAX_FINALIZE_TOKENS, 1, dtype=torch.int32))

    def _take_over_ids(self) -> tuple[int, int]:
        """(first, count) of the experts that `route` names: this rank's own, so that the grouped
        GEMM takes the ids as they are. SGLang's dispatcher would map them in six launches, for
        which the experts wait 14 us a layer (batch 1, four H200). With attention DP it still maps
        them, because it also drops rows of padding there; and some runners want the model's own
        expert numbers."""
        dispatcher = self.experts.dispatcher
        if dispatcher.skip_local_expert_mapping or is_dp_attention_enabled():
            return 0, self.num_experts
        dispatcher.skip_local_expert_mapping = self.ids_are_local = True
        count = dispatcher.num_local_routed_experts
        return dispatcher.moe_ep_rank * count, count

    def route(self, hidden_states: torch.Tensor, slots: torch.Tensor | None = None) -> Routing:
        """slots: [T] KV slots, which show the rows of padding; see `moe_router.Options`."""
        classifier, bias = self.router.classifier, self.router.e_score_correction_bias
        options = Options(
            self.top_k, self.num_experts, self.routed_scaling_factor, self.held, slots
        )
        if use_moe_router(hidden_states, classifier):
            return route_tokens(hidden_states, classifier.weight, bias, options)
        return route(self.router(hidden_states), bias, options)

    def forward(
        self, hidden_states: torch.Tensor, routing: Routing, adds_identity: bool
    ) -> Mixture:
        if self.use_small_experts(hidden_states):
            return self._mix_few_tokens(hidden_states, routing, adds_identity)
        # The third argument stands in for logits, which no runner reads here; SGLang's graph op
        # wants a tensor.
        chosen = StandardTopKOutput(routing.weights, routing.expert_ids, routing.weights)
        runner = self.experts.moe_runner_config
        runner.no_combine = use_expert_finalize(hidden_states, self.experts)
        pair = pair_of(hidden_states)
        use_pair = pair is not None and accepts_pair(self.experts)
        prepared = {"pre_quant_input": pair} if use_pair else {}
        output = self.experts(hidden_states, chosen, **prepared)
        identity = (hidden_states, routing.identity_weight) if adds_identity else (None, None)
        return Mixture(output, routing.expert_ids, *identity)

    def _mix_few_tokens(self, x: torch.Tensor, routing: Routing, adds_identity: bool) -> Mixture:
        """Two launches of ours, which also add up the slots and the identity part. The mixture has
        one slot, which every token has, so that the next norm can add it."""
        identity = routing.identity_weight if adds_identity else None
        weights = expert_weights(self.experts)
        total = small_experts(x, routing.expert_ids, routing.weights, weights, identity)
        return Mixture(total[:, None], self.only_slot[: len(x)], None, None)

    def use_small_experts(self, x: torch.Tensor) -> bool:
        """Whether this step's mixture runs our kernels: few tokens, whole activations, ids of this
        rank's own experts, and weights that the Triton runner would read."""
        return (
            env.small_experts()
            and x.is_cuda
            and x.ndim == 2
            and x.dtype == torch.bfloat16
            and self.ids_are_local
            and has_plain_weights(self.experts)
            and is_faster(expert_weights(self.experts), len(x))
            and not torch.compiler.is_compiling()
        )

    def reads_pair(self, x: torch.Tensor) -> bool:
        """Whether the experts of this step read a quantised activation."""
        return accepts_pair(self.experts) and not self.use_small_experts(x)


def expert_weights(experts: Any) -> Weights:
    """SGLang's parameters as our kernels take them."""
    scales = (getattr(experts, f"{name}_weight_scale_inv", None) for name in ("w13", "w2"))
    return Weights(experts.w13_weight, experts.w2_weight, *scales)


def has_plain_weights(experts: Any) -> bool:
    """Bf16 or block FP8 as SGLang's Triton runner reads them, on experts without LoRA."""
    method, backend = experts.quant_method, experts.runner_backend
    plain = type(method) is UnquantizedFusedMoEMethod or accepts_pair(experts)
    return (
        plain
        and type(experts) is FusedMoE
        and backend is not None
        and backend.is_triton()
        and not is_deterministic()
        and supports_small(expert_weights(experts))
    )


def use_moe_router(x: torch.Tensor, classifier: Any) -> bool:
    """Whether the router's GEMM and routing are our two launches; else SGLang's GEMM, then ours."""
    return classifier.bias is None and supports(x, classifier.weight) and is_enabled("moe_router")


def use_expert_finalize(x: torch.Tensor, experts: Any) -> bool:
    """Whether the expert GEMM returns [T, top_k, hidden] and we sum over the slots. Slots that this
    rank does not compute then have rows of zeros."""
    backend = experts.runner_backend
    return (
        x.is_cuda
        and x.shape[0] <= MAX_FINALIZE_TOKENS
        and backend is not None
        and backend.is_triton()
        and is_enabled("expert_finalize")
    )

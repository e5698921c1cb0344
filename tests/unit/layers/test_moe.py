"""Both ways to the mixture's output: SGLang sums the experts, or leaves the sum to our kernel."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sglang_longcat.layers import moe, step

TOKENS, HIDDEN, ROUTED, TOP_K = 5, 8, 6, 3


class Router(nn.Module):
    def __init__(self):
        super().__init__()
        self.e_score_correction_bias = torch.zeros(2 * ROUTED)
        self.classifier = nn.Linear(HIDDEN, 2 * ROUTED, bias=False)  # for kernels on a GPU only

    def forward(self, x):
        return (x.float() @ torch.linspace(-1, 1, HIDDEN * 2 * ROUTED).view(HIDDEN, -1)).sin()


class Experts(nn.Module):
    """Expert e multiplies by e + 1; what nobody wrote is NaN, as in SGLang's own buffers."""

    def __init__(self):
        super().__init__()
        self.moe_runner_config = SimpleNamespace(
            no_combine=False, no_combine_keep_router_weight=True
        )
        self.runner_backend = SimpleNamespace(is_triton=lambda: True)

    def forward(self, x, chosen):
        gain = (chosen.topk_ids + 1) * chosen.topk_weights
        slots = gain[:, :, None] * x[:, None]
        if self.moe_runner_config.no_combine:
            return slots.masked_fill((chosen.topk_ids < 0)[:, :, None], torch.nan)
        return slots.sum(dim=1)


@pytest.fixture
def layer():
    layer = moe.LongcatMoE.__new__(moe.LongcatMoE)
    nn.Module.__init__(layer)
    layer.router, layer.experts = Router(), Experts()
    layer.num_experts, layer.top_k, layer.routed_scaling_factor = ROUTED, TOP_K, 6.0
    layer.held = (0, ROUTED)
    return layer


@pytest.mark.parametrize("adds_identity", [False, True])
def test_our_sum_equals_sglangs(layer, monkeypatch, adds_identity):
    """Red if a rank adds the identity part in one way only, or a slot without an expert is read."""
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))
    theirs = layer(x, layer.route(x), adds_identity).sum()
    monkeypatch.setattr(moe, "use_expert_finalize", lambda x, experts: True)
    torch.testing.assert_close(layer(x, layer.route(x), adds_identity).sum(), theirs)
    torch.testing.assert_close(layer(x, layer.route(x), adds_identity).sum(x), theirs + x)
    monkeypatch.undo()
    torch.testing.assert_close(
        layer(x, layer.route(x), adds_identity).sum(x), theirs + x
    )  # switched back


@pytest.fixture
def dispatcher(layer):
    layer.experts.dispatcher = SimpleNamespace(
        skip_local_expert_mapping=False, moe_ep_rank=1, num_local_routed_experts=2
    )
    return layer.experts.dispatcher


def test_ids_are_mapped_once(layer, dispatcher, monkeypatch):
    """Red if a rank's ids are mapped by the router and by SGLang's dispatcher, or by neither."""
    monkeypatch.setattr(moe, "is_dp_attention_enabled", lambda: False)
    layer.held = layer._take_over_ids()
    assert dispatcher.skip_local_expert_mapping
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))
    own, layer.held = layer.route(x).expert_ids, (0, ROUTED)
    wanted = [[e - 2 if e in (2, 3) else -1 for e in row] for row in layer.route(x).expert_ids]
    assert own.tolist() == wanted
    assert (own >= 0).any()


def test_padding_has_no_expert(layer):
    """Red if the router does not hear which rows are padding."""
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))
    routing = layer.route(x, torch.tensor([3, 0, 4, 0, 5]))
    assert (routing.expert_ids[[1, 3]] < 0).all()
    assert (routing.expert_ids[[0, 2, 4]] >= 0).any()


@pytest.mark.parametrize("deterministic", [False, True])
def test_deterministic_inference_keeps_sglangs_gemm(layer, monkeypatch, deterministic):
    """Red if a token's logits then come from one kernel of ours or another, by the batch."""
    settings = SimpleNamespace(enable_deterministic_inference=deterministic)
    monkeypatch.setattr(step, "get_exec", lambda: SimpleNamespace(deterministic=settings))
    monkeypatch.setattr(moe, "supports", lambda x, weight: True)
    monkeypatch.setattr(moe, "route_tokens", lambda *_: "ours")
    assert (layer.route(torch.zeros(TOKENS, HIDDEN)) == "ours") != deterministic


@pytest.mark.parametrize(
    ("dp", "rows", "known"), [(False, 5, True), (True, 5, False), (False, 2, False)]
)
def test_rows_that_ranks_moved_have_no_slots(monkeypatch, dp, rows, known):
    monkeypatch.setattr(moe, "is_dp_attention_enabled", lambda: dp)
    batch = SimpleNamespace(out_cache_loc=torch.arange(5))
    assert (moe.kv_slots(torch.empty(rows, HIDDEN), batch) is not None) == known


@pytest.mark.parametrize(("dp", "skips"), [(True, False), (False, True)])
def test_who_else_maps_gets_the_models_numbers(layer, dispatcher, monkeypatch, dp, skips):
    monkeypatch.setattr(moe, "is_dp_attention_enabled", lambda: dp)
    dispatcher.skip_local_expert_mapping = skips
    assert layer._take_over_ids() == (0, ROUTED)
    assert dispatcher.skip_local_expert_mapping == skips


def test_only_decode_steps_on_a_gpu_with_tritons_gemm(layer):
    def finalizes(tokens, is_cuda=True):
        x = SimpleNamespace(is_cuda=is_cuda, shape=(tokens, HIDDEN))
        return moe.use_expert_finalize(x, layer.experts)

    assert finalizes(1)
    assert finalizes(moe.MAX_FINALIZE_TOKENS)
    assert not finalizes(moe.MAX_FINALIZE_TOKENS + 1)
    assert not finalizes(1, is_cuda=False)
    layer.experts.runner_backend = SimpleNamespace(is_triton=lambda: False)
    assert not finalizes(1)


def test_few_tokens_have_one_slot_with_everything(layer, monkeypatch):
    """Red if our two launches lose the identity part, add it twice, or give a norm slots that it
    does not add."""
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(0))
    routing = layer.route(x)
    wanted = [layer(x, routing, identity).sum(x) for identity in (False, True)]
    layer.only_slot = torch.zeros(16, 1, dtype=torch.int32)

    def mix(x, ids, factors, weights, identity):
        total = ((ids + 1) * factors)[:, :, None].mul(x[:, None]).sum(1)
        return total if identity is None else total + identity[:, None] * x

    monkeypatch.setattr(moe, "small_experts", mix)
    monkeypatch.setattr(moe, "expert_weights", lambda experts: None)
    monkeypatch.setattr(layer, "use_small_experts", lambda x: True, raising=False)
    got = [layer(x, routing, identity) for identity in (False, True)]
    assert [(mixture.experts.dim(), mixture.x) for mixture in got] == [(3, None)] * 2
    for mixture, sum_ in zip(got, wanted):
        torch.testing.assert_close(mixture.sum(x), sum_)


def test_which_steps_take_our_launches(layer, monkeypatch):
    """Red if one of the conditions is dropped: each alone leaves the step to the grouped GEMM."""
    monkeypatch.setattr(moe, "has_plain_weights", lambda experts: True)
    monkeypatch.setattr(moe, "expert_weights", lambda experts: None)
    monkeypatch.setattr(moe, "is_faster", lambda weights, tokens: tokens <= 2)
    monkeypatch.setenv("LONGCAT_SMALL_EXPERTS", "1")

    class OnGpu(torch.Tensor):
        is_cuda = True

    def tokens(count, dtype=torch.bfloat16):
        return torch.zeros(count, HIDDEN, dtype=dtype).as_subclass(OnGpu)

    layer.ids_are_local = True
    assert layer.use_small_experts(tokens(2))
    assert not layer.use_small_experts(tokens(3))
    assert not layer.use_small_experts(tokens(2, torch.float16))
    assert not layer.use_small_experts(torch.zeros(2, HIDDEN, dtype=torch.bfloat16))
    layer.ids_are_local = False
    assert not layer.use_small_experts(tokens(2))
    layer.ids_are_local = True
    monkeypatch.delenv("LONGCAT_SMALL_EXPERTS")
    assert not layer.use_small_experts(tokens(2))

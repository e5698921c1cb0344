"""What a layer tells its branches; what they compute is checked in engines."""

from types import SimpleNamespace

import torch

from sglang_longcat.layers import decoder_layer
from sglang_longcat.layers.decoder_layer import LongcatDecoderLayer
from sglang_longcat.layers.moe import Mixture

TOKENS, HIDDEN = 3, 8


class Boundary:
    """Rows stay where they are, and nothing is added to them."""

    def prepare(self, hidden, forward_batch):
        return hidden

    def finish(self, hidden, forward_batch):
        return hidden

    def branch_input(self, boundary, hidden, forward_batch):
        return hidden


class Moe:
    def route(self, hidden, slots):
        self.slots = slots

    def __call__(self, hidden, routing, adds_identity):
        return Mixture(torch.zeros_like(hidden), torch.empty(0), None, None)


def test_the_router_hears_which_rows_are_padding(monkeypatch):
    """Red if a layer routes without the KV slots: padding then has experts' weights read."""
    monkeypatch.setattr(decoder_layer, "is_adding_rank", lambda *stage: True)
    monkeypatch.setattr(decoder_layer, "share_one_sum", lambda *stages: True)
    monkeypatch.setattr(decoder_layer, "use_deferred_sum", lambda *mixture: False)
    monkeypatch.setattr("sglang_longcat.layers.moe.is_dp_attention_enabled", lambda: False)
    boundary, moe = Boundary(), Moe()
    layer = SimpleNamespace(
        self_attn=[lambda hidden_states, **rest: hidden_states] * 2,
        mlps=[torch.nn.Identity()] * 2,
        mlp=moe,
        **dict.fromkeys(
            (
                "attn_boundary",
                "moe_boundary",
                "first_ffn_boundary",
                "second_attn_boundary",
                "second_ffn_boundary",
            ),
            boundary,
        ),
    )
    batch = SimpleNamespace(out_cache_loc=torch.tensor([4, 7, 0]))
    x = torch.ones(TOKENS, HIDDEN)
    result, _ = LongcatDecoderLayer.forward(layer, torch.arange(TOKENS), x, batch, None)
    assert moe.slots is batch.out_cache_loc
    assert torch.equal(result, x)

from dataclasses import replace

import pytest

from sglang_longcat.config import LongcatConfig
from sglang_longcat.quantiser.command import by_kind
from sglang_longcat.quantiser.selection import Options, QuantiseError, select
from sglang_longcat.testing.tiny import TinyOptions, tiny_config

CONFIG = LongcatConfig.from_dict(tiny_config(TinyOptions(layers=1, experts=2)))
HALF = "model.layers.0.self_attn.1"


def test_what_is_quantised() -> None:
    """Red if a layer that must stay in bf16 is quantised, or one that may be is not."""
    plain = select(CONFIG, Options(), mtp=True)
    kinds = set(by_kind(plain.quantised))
    attention = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"}
    mlp = {"gate_proj", "up_proj", "down_proj"}
    expected = {f"self_attn.{name}" for name in attention}
    expected |= {f"{part}.{name}" for part in ("mlps", "mlp.experts") for name in mlp}
    assert kinds == expected
    assert all("mtp" in module or "kv_b_proj" in module for module in plain.kept)
    everything = select(CONFIG, Options(mtp=True, kv_b=True), mtp=True)
    assert everything.kept == {}
    assert everything.quantised == plain.quantised | plain.kept.keys()


@pytest.mark.parametrize("options", [Options(), Options(32, False, mtp=True, kv_b=True)], ids=str)
def test_config_says_the_same(options: Options) -> None:
    """Red if config.json names other layers than those that are quantised."""
    selection = select(CONFIG, options, mtp=True)
    for module in [*selection.quantised, *selection.kept]:
        assert selection.stored.quantises(module) == (module in selection.quantised), module
    assert selection.config["extra_config"].keys() >= {"model.layers.0.mlp.router.classifier"}


def test_joined_layers_stay_together() -> None:
    """Red if one of two layers that a server joins is quantised without the other: it would not
    start. In nano's sizes 288 inputs are no multiple of 64."""
    selection = select(replace(CONFIG, expert_ffn_hidden_size=96), Options(64), mtp=False)
    experts = "model.layers.0.mlp.experts.0"
    assert selection.kept[f"{experts}.down_proj"] == "96 inputs, no multiple of 64"
    assert selection.kept[f"{experts}.up_proj"].startswith("one layer with down_proj: 96 inputs")
    assert f"{HALF}.q_a_proj" in selection.quantised


def test_mtp_layer_is_in_one_format() -> None:
    """Red if a part of it is quantised: a server takes it for unquantised, and does not start."""
    kept = select(CONFIG, Options(), mtp=True).kept
    with_mtp = select(CONFIG, Options(mtp=True), mtp=True)
    draft = {module for module in kept if ".mtp." in module}
    assert len(draft) == 9
    assert draft <= with_mtp.quantised
    odd = select(replace(CONFIG, q_lora_rank=96), Options(64, mtp=True), mtp=True)
    assert draft <= odd.kept.keys()


def test_nothing_divides() -> None:
    odd = replace(
        CONFIG, hidden_size=744, q_lora_rank=72, v_head_dim=9, ffn_hidden_size=72,
        expert_ffn_hidden_size=72,
    )  # fmt: skip
    with pytest.raises(QuantiseError, match="No layer can be quantised in groups of 32"):
        select(odd, Options(32), mtp=False)

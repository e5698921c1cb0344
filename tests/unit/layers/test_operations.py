"""The activation line names the operations that this server may run, and no others."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

from sglang_longcat import env, plugin
from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.config import LongcatConfig, QuantConfig
from sglang_longcat.layers import operations, step
from sglang_longcat.layers.operations import enabled_operations

BF16 = LongcatConfig.from_dict(json.loads(PUBLISHED_CONFIG.read_text()))
FP8 = dataclasses.replace(BF16, quant=QuantConfig(method="fp8", block=(128, 128), ignored=()))


@pytest.fixture(autouse=True)
def flags(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    flags = SimpleNamespace(enable_deterministic_inference=False)
    monkeypatch.setattr(step, "get_exec", lambda: SimpleNamespace(deterministic=flags))
    monkeypatch.setattr(operations, "get_platform", lambda: SimpleNamespace(is_sm90=True))
    monkeypatch.delenv("LONGCAT_SGLANG_OPS", raising=False)
    monkeypatch.delenv("LONGCAT_SPLIT_ATTENTION", raising=False)
    return flags


def test_all_by_default() -> None:
    """Red if an operation is added without a place in the line."""
    assert enabled_operations(FP8) == ["ngram", *env.OPTIONAL_OPS]
    assert set(enabled_operations(FP8)) - set(enabled_operations(BF16)) == {
        name for name in env.OPTIONAL_OPS if name.startswith("fp8_")
    }


@pytest.mark.parametrize(
    ("variable", "value", "missing"),
    [
        ("LONGCAT_SGLANG_OPS", "moe_router, small_linear", {"moe_router", "small_linear"}),
        ("LONGCAT_SGLANG_OPS", "mla_prologue", {"mla_prologue", "mla_decode", "fp8_values"}),
        ("LONGCAT_SGLANG_OPS", "all", set(env.OPTIONAL_OPS)),
        ("LONGCAT_SPLIT_ATTENTION", "0", {"mla_decode", "fp8_values"}),
    ],
)
def test_switches_take_operations_out(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, missing: set[str]
) -> None:
    """Red if the line claims a kernel that a switch has turned off."""
    every = set(enabled_operations(FP8))
    monkeypatch.setenv(variable, value)
    assert every - set(enabled_operations(FP8)) == missing


def test_other_gpus_than_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the line claims kernels that only Hopper runs; N of the switch holds on any GPU."""
    monkeypatch.setattr(operations, "get_platform", lambda: SimpleNamespace(is_sm90=False))
    hopper_only = {"fp8_norm", "fp8_query", "fp8_swiglu", "fp8_values", "mla_decode"}
    assert enabled_operations(FP8) == [
        "ngram",
        *(name for name in env.OPTIONAL_OPS if name not in hopper_only),
    ]
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", "8")
    assert "mla_decode" in enabled_operations(FP8)


def test_deterministic_inference_keeps_one_order_of_sums(flags: SimpleNamespace) -> None:
    flags.enable_deterministic_inference = True
    assert enabled_operations(FP8) == ["ngram", "expert_finalize"]


def test_the_line_names_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plugin, "_cpu_parts", [])
    with caplog.at_level("INFO"):
        plugin.log_activation(["ngram", "moe_router"])
    assert "LongCat-Flash-Lite on our kernels for ngram, moe_router. LONGCAT_DISABLE" in caplog.text

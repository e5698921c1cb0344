"""Environment switches: the values they accept, their defaults, and that a typo is an error."""

import pytest
import torch

from longcat_kernels import dispatch
from sglang_longcat import env, plugin


def test_a_number_of_tokens(monkeypatch):
    """Red if an unset or empty variable does not mean the default, or 0 is not kept."""
    assert (env.two_streams(), env.split_attention()) == (256, None)
    for text, value in (("", 256), ("0", 0), (" 64 ", 64)):
        monkeypatch.setenv("LONGCAT_TWO_STREAMS", text)
        assert env.two_streams() == value
    for text, tokens in (("", None), ("Auto", None), ("0", 0), (" 4 ", 4)):
        monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", text)
        assert env.split_attention() == tokens


@pytest.mark.parametrize("text", ["-1", "many", "1.5"])
def test_what_is_no_number_of_tokens_is_refused(monkeypatch, text):
    monkeypatch.setenv("LONGCAT_TWO_STREAMS", text)
    with pytest.raises(ValueError, match=r"LONGCAT_TWO_STREAMS=.*expected a number of tokens"):
        env.two_streams()
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", text)
    with pytest.raises(ValueError, match=r"LONGCAT_SPLIT_ATTENTION=.*auto, a number of tokens"):
        env.split_attention()


def test_kernels_of_ours_are_switched_off_by_name(monkeypatch):
    assert all(map(env.use_ours, env.OPTIONAL_OPS))
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "moe_router, small_linear")
    off = {op for op in env.OPTIONAL_OPS if not env.use_ours(op)}
    assert off == {"moe_router", "small_linear"}
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "all")
    assert not any(map(env.use_ours, env.OPTIONAL_OPS))


def test_early_starts_are_switched_off(monkeypatch):
    """Red if the switch does not reach the kernels, or cannot be set back."""
    tensor = torch.empty(0)
    with dispatch.triton_everywhere():
        for text, early in (("0", False), ("1", True), ("", True)):
            monkeypatch.setenv("LONGCAT_PDL", text)
            plugin.register()
            assert dispatch.pdl_options(tensor)["PDL"] is early
    monkeypatch.setenv("LONGCAT_PDL", "maybe")
    with pytest.raises(SystemExit, match="LONGCAT_PDL='maybe': expected one of 1, 0"):
        plugin.register()


def test_an_unknown_kernel_is_refused(monkeypatch):
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "router")
    with pytest.raises(ValueError, match="router unknown, expected all or some of expert_finalize"):
        env.use_ours("moe_router")


def test_defaults_do_not_replace_what_is_set(monkeypatch):
    """And are gone afterwards, also after an error."""
    monkeypatch.setenv("LONGCAT_NGRAM_TABLES", "device")
    monkeypatch.delenv("LONGCAT_NGRAM_TABLE_DTYPE", raising=False)
    switches = {"LONGCAT_NGRAM_TABLES": "host", "LONGCAT_NGRAM_TABLE_DTYPE": "fp8"}

    def fail():
        with env.defaults(switches):
            assert (env.ngram_tables(), env.ngram_table_dtype()) == ("device", "fp8")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (env.ngram_tables(), env.ngram_table_dtype()) == ("device", "bf16")

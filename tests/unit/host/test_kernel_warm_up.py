"""The sizes that a server readies its kernels for are those of its model and its flags."""

import json

import torch

from longcat_kernels.ngram_rows.workloads import make_rows
from longcat_kernels.small_linear.workloads import LITE_TP2
from longcat_kernels.warm_up import Sizes
from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.config import LongcatConfig
from sglang_longcat.host.kernel_warm_up import kernel_sizes

LITE = json.loads(PUBLISHED_CONFIG.read_text())


def test_the_published_model_is_the_default_of_make_kernels():
    config, table = LongcatConfig.from_dict(LITE), make_rows(1, 256, "bf16", seed=0, device="cpu")
    assert kernel_sizes(config, torch.bfloat16, table, draft_tokens=None) == Sizes()


def test_verify_windows_several_eos_and_fp8_rows():
    config = LongcatConfig.from_dict({**LITE, "eos_token_id": [2, 5]})
    table = make_rows(1, 128, "fp8", seed=0, device="cpu")
    found = kernel_sizes(config, torch.float16, table, draft_tokens=4)
    assert (found.windows, found.eos, found.dtype) == ((1, 4), 2, torch.float16)
    assert (found.columns, found.fp8_rows) == (128, True)


def test_block_fp8_weights_want_quantised_inputs():
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    config = LongcatConfig.from_dict({**LITE, "quantization_config": fp8})
    table = make_rows(1, 256, "bf16", seed=0, device="cpu")
    assert kernel_sizes(config, torch.bfloat16, table, None) == Sizes(fp8_inputs=True)


def test_which_steps_attend_with_the_split_kernel(monkeypatch):
    """Red if a switch or the context does not reach the warm-up, which then misses variants."""
    config, table = LongcatConfig.from_dict(LITE), make_rows(1, 128, "bf16", seed=0, device="cpu")

    def found():
        sizes = kernel_sizes(config, torch.bfloat16, table, draft_tokens=4, context=9000)
        return sizes.split_tokens, sizes.context

    assert found() == (None, 9000)
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", "6")
    assert found() == (6, 9000)
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "mla_decode")
    assert found() == (0, 9000)


def test_ranks_split_the_projections_and_a_draft_adds_one():
    config, table = LongcatConfig.from_dict(LITE), make_rows(1, 128, "bf16", seed=0, device="cpu")
    found = kernel_sizes(config, torch.bfloat16, table, 4, mlp_ranks=2, attention_ranks=2)
    assert found.projections[:-1] == LITE_TP2
    assert found.projections[-1][1:] == ("linear", 3072, 6144)

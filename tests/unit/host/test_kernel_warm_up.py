"""The sizes that a server warms up its kernels for are those of its model and its flags."""

import json

import torch

from longcat_kernels import lite
from longcat_kernels.ngram.workloads import make_rows
from longcat_kernels.small_linear.workloads import LITE_TP2
from longcat_kernels.warm_up import Sizes
from sglang_longcat.checkpoint import PUBLISHED_CONFIG
from sglang_longcat.config import LongcatConfig
from sglang_longcat.host.kernel_warm_up import kernel_sizes

LITE = json.loads(PUBLISHED_CONFIG.read_text())


def test_the_published_model_is_the_default_of_make_kernels():
    config, rows = LongcatConfig.from_dict(LITE), make_rows(1, 256, "bf16", seed=0, device="cpu")
    assert kernel_sizes(config, torch.bfloat16, rows, draft_tokens=None) == Sizes()


def test_the_kernels_sizes_are_the_published_models():
    """Those that no kernel variant depends on; the others are in `Sizes`."""
    config = LongcatConfig.from_dict(LITE)
    assert config.ngram is not None
    ours = (
        *(lite.VOCAB, lite.CONTEXT, lite.EOS, lite.EPS, lite.ROPE_THETA, lite.ROUTED_SCALE),
        *(lite.FFN, lite.EXPERT_FFN, lite.NGRAM_ROWS, lite.NGRAM_N),
    )
    assert ours == (
        *(config.vocab_size, config.max_position_embeddings, config.eos_token_ids),
        *(config.rms_norm_eps, config.rope_theta, config.routed_scaling_factor),
        *(config.ffn_hidden_size, config.expert_ffn_hidden_size),
        *(config.ngram.rows, config.ngram.n),
    )


def test_verify_windows_several_eos_and_fp8_rows():
    config = LongcatConfig.from_dict({**LITE, "eos_token_id": [2, 5]})
    rows = make_rows(1, 128, "fp8", seed=0, device="cpu")
    sizes = kernel_sizes(config, torch.float16, rows, draft_tokens=4)
    assert (sizes.windows, sizes.eos, sizes.dtype) == ((1, 4), 2, torch.float16)
    assert (sizes.columns, sizes.row_format) == (128, "fp8")


def test_block_fp8_weights_want_quantised_inputs():
    fp8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    config = LongcatConfig.from_dict({**LITE, "quantization_config": fp8})
    rows = make_rows(1, 256, "bf16", seed=0, device="cpu")
    assert kernel_sizes(config, torch.bfloat16, rows, None) == Sizes(fp8_inputs=True)


def test_symmetric_4_bit_weights_want_their_kernel():
    """Red if a server compiles the kernel's variants at its first request."""
    rows = make_rows(1, 256, "bf16", seed=0, device="cpu")
    for symmetric, group in ((True, 64), (False, None)):
        packed = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": symmetric}
        packed |= {"data_type": "int", "packing_format": "auto_round:auto_gptq"}
        config = LongcatConfig.from_dict({**LITE, "quantization_config": packed})
        assert kernel_sizes(config, torch.bfloat16, rows, None).packed_group == group


def test_which_steps_attend_with_the_split_kernel(monkeypatch):
    """Red if a switch or the context does not reach the warm-up, which then misses variants."""
    config, rows = LongcatConfig.from_dict(LITE), make_rows(1, 128, "bf16", seed=0, device="cpu")

    def attention():
        sizes = kernel_sizes(config, torch.bfloat16, rows, draft_tokens=4, context=9000)
        return sizes.split_tokens, sizes.context

    assert attention() == (None, 9000)
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", "6")
    assert attention() == (6, 9000)
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "mla_decode")
    assert attention() == (0, 9000)


def test_fp8_rows_of_the_kv_cache_take_the_split_kernel_in_every_step(monkeypatch):
    """Red if a switch for bf16 rows leaves variants to the first request."""
    config, rows = LongcatConfig.from_dict(LITE), make_rows(1, 128, "bf16", seed=0, device="cpu")
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", "0")
    sizes = kernel_sizes(config, torch.bfloat16, rows, draft_tokens=4, fp8_requests=48)
    assert (sizes.fp8_kv, sizes.split_tokens) == (True, 192)
    assert not kernel_sizes(config, torch.bfloat16, rows, draft_tokens=4).fp8_kv


def test_ranks_split_the_projections_and_a_draft_adds_one():
    config, rows = LongcatConfig.from_dict(LITE), make_rows(1, 128, "bf16", seed=0, device="cpu")
    sizes = kernel_sizes(config, torch.bfloat16, rows, 4, mlp_ranks=2, attention_ranks=2)
    assert sizes.projections[:-1] == LITE_TP2
    assert sizes.projections[-1][1:] == ("linear", 3072, 6144)

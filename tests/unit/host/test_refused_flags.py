"""Each refused flag by name, on SGLang's own record of its flags."""

from __future__ import annotations

from typing import Any

import pytest
from sglang.srt.arg_groups.overrides import declare_resolution
from sglang.srt.server_args import ServerArgs

from sglang_longcat.host import refusals
from sglang_longcat.host.refusals.weights import BY_FORMAT
from sglang_longcat.host.refused_flags import (
    UnsupportedFlag,
    refuse_contradictions,
    refuse_unsupported,
    unsupported_flags,
)

NEXTN = {
    "speculative_algorithm": "NEXTN",
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}
NGRAM = {"speculative_algorithm": "NGRAM", "speculative_ngram_max_bfs_breadth": 1}
DRAFT_FP8 = {"speculative_draft_model_quantization": "fp8"}
GPU, CPU = {"device": "cuda"}, {"device": "cpu"}

# What the message must begin with (a flag, with its value) and the flags that were typed.
CASES: list[tuple[str, dict[str, Any]]] = [
    # weights
    ("--model-impl transformers", {"model_impl": "transformers"}),
    ("--load-format sharded_state", {"load_format": "sharded_state"}),
    ("--load-format bitsandbytes", {"load_format": "bitsandbytes"}),
    ("--speculative-draft-load-format gguf", {"speculative_draft_load_format": "gguf"}),
    ("--weight-cache-mode client", {"weight_cache_mode": "client"}),
    ("--quantization w8a8_int8", {"quantization": "w8a8_int8"}),
    (
        "--speculative-draft-model-quantization modelopt",
        {"speculative_draft_model_quantization": "modelopt"},
    ),
    ("--modelopt-quant fp8", {"modelopt_quant": "fp8"}),
    ("--quantize-and-serve", {"quantize_and_serve": True}),
    ("--cpu-offload-gb 8", {"cpu_offload_gb": 8}),
    ("--offload-group-size 2", {"offload_group_size": 2}),
    ("--enable-lora", {"enable_lora": True}),
    ("--enable-lora, --lora-paths", {"lora_paths": ["adapter"]}),
    ("--enable-lora", {"lora_target_modules": {"embed_tokens"}}),
    # ranks
    ("--use-ray", {"use_ray": True}),
    ("--pp-size 2", {"pp_size": 2}),
    ("--dwdp-size 2", {"dwdp_size": 2}),
    ("--attn-cp-size 2", {"attn_cp_size": 2}),
    ("--dcp-size 2", {"dcp_size": 2}),
    ("--moe-dp-size 2", {"moe_dp_size": 2}),
    ("--moe-dense-tp-size 1", {"moe_dense_tp_size": 1, "tp_size": 2}),
    ("--enable-prefill-cp", {"enable_prefill_cp": True}),
    ("--enable-kv-cache-sharding", {"enable_kv_cache_sharding": True}),
    ("--enable-pd-role-switch", {"enable_pd_role_switch": True}),
    ("--enable-pdmux", {"enable_pdmux": True}),
    # experts
    ("--enable-eplb", {"enable_eplb": True}),
    ("--ep-num-redundant-experts", {"ep_num_redundant_experts": 2}),
    ("--init-expert-location map.json", {"init_expert_location": "map.json"}),
    ("--ep-dispatch-algorithm static", {"ep_dispatch_algorithm": "static"}),
    ("--moe-a2a-backend deepep", {"moe_a2a_backend": "deepep"}),
    ("--moe-runner-backend flashinfer_trtllm", {"moe_runner_backend": "flashinfer_trtllm"}),
    ("--moe-runner-backend deep_gemm", {"moe_runner_backend": "deep_gemm"}),
    ("--enable-two-batch-overlap", {"enable_two_batch_overlap": True}),
    ("--enable-return-routed-experts", {"enable_return_routed_experts": True}),
    ("--expert-distribution-recorder-mode stat", {"expert_distribution_recorder_mode": "stat"}),
    ("--expert-balancedness-report-mode both", {"expert_balancedness_report_mode": "both"}),
    ("--enable-paged-experts", {"enable_paged_experts": True}),
    ("--kt-weight-path", {"kt_weight_path": "somewhere"}),
    ("--elastic-ep-backend nixl", {"elastic_ep_backend": "nixl"}),
    ("--enable-elastic-expert-backup", {"enable_elastic_expert_backup": True}),
    # attention and its cache
    *(
        (f"--{name.replace('_', '-')} {backend}", {name: backend, **device})
        for name in (
            "attention_backend",
            "prefill_attention_backend",
            "decode_attention_backend",
            "speculative_draft_attention_backend",
        )
        for backend, device in (("dsa", GPU), ("torch_native", GPU), ("fa3", CPU))
    ),
    ("--kv-cache-dtype fp8_e5m2", {"kv_cache_dtype": "fp8_e5m2", **CPU}),
    ("--kv-cache-dtype nvfp4", {"kv_cache_dtype": "nvfp4"}),
    ("--kv-cache-dtype bf16", {"kv_cache_dtype": "bf16", "dtype": "float32"}),
    (
        "--speculative-draft-kv-cache-dtype fp8_e4m3",
        {"speculative_draft_kv_cache_dtype": "fp8_e4m3"},
    ),
    ("--enable-hierarchical-cache", {"enable_hierarchical_cache": True, **CPU}),
    ("--enable-unified-memory", {"enable_unified_memory": True}),
    ("--enable-page-major-kv-layout", {"enable_page_major_kv_layout": True}),
    ("--enable-hisparse", {"enable_hisparse": True}),
    ("--enable-mis", {"enable_mis": True}),
    ("--dllm-algorithm LowConfidence", {"dllm_algorithm": "LowConfidence"}),
    # features
    ("--is-embedding", {"is_embedding": True}),
    ("--enable-return-aux-hidden-states", {"enable_return_aux_hidden_states": True}),
    ("--enable-return-indexer-topk", {"enable_return_indexer_topk": True}),
    ("--enable-torch-compile", {"enable_torch_compile": True}),
    ("--enable-tf32-matmul", {"enable_tf32_matmul": True}),
    ("--enable-memory-saver", {"enable_memory_saver": True, **CPU}),
    ("--kv-canary log", {"kv_canary": "log"}),
    ("--rl-on-policy-target fsdp", {"rl_on_policy_target": "fsdp"}),
    # speculation
    ("--speculative-algorithm EAGLE3", {"speculative_algorithm": "EAGLE3"}),
    ("--speculative-algorithm DFLASH", {"speculative_algorithm": "DFLASH"}),
    ("--speculative-eagle-topk 2", {**NEXTN, "speculative_eagle_topk": 2}),
    ("--speculative-num-draft-tokens 14", {**NEXTN, "speculative_num_draft_tokens": 14}),
    ("--speculative-num-draft-tokens 0", {**NGRAM, "speculative_num_draft_tokens": 0}),
    ("--speculative-num-draft-tokens -2", {**NGRAM, "speculative_num_draft_tokens": -2}),
    ("--speculative-ngram-max-bfs-breadth 10", {"speculative_algorithm": "NGRAM"}),
    ("--speculative-ngram-max-bfs-breadth 10", {"speculative_algorithm": "ngram"}),
    ("--speculative-ngram-min-bfs-breadth 2", {**NGRAM, "speculative_ngram_min_bfs_breadth": 2}),
    ("--speculative-ngram-min-bfs-breadth 0", {**NGRAM, "speculative_ngram_min_bfs_breadth": 0}),
    ("--speculative-ngram-max-trie-depth 1", {**NGRAM, "speculative_ngram_max_trie_depth": 1}),
    ("--speculative-ngram-max-trie-depth -3", {**NGRAM, "speculative_ngram_max_trie_depth": -3}),
    ("--speculative-ngram-capacity 18", {**NGRAM, "speculative_ngram_capacity": 18}),
    ("--speculative-ngram-capacity 0", {**NGRAM, "speculative_ngram_capacity": 0}),
    (
        "--enable-custom-logit-processor",
        {**NEXTN, "enable_custom_logit_processor": True},
    ),
    ("--speculative-adaptive", {**NEXTN, "speculative_adaptive": True}),
    ("--enable-multi-layer-eagle", {**NEXTN, "enable_multi_layer_eagle": True}),
    ("--decoupled-spec-role verifier", {**NEXTN, "decoupled_spec_role": "verifier"}),
    (
        "--speculative-use-rejection-sampling",
        {**NEXTN, **CPU, "speculative_use_rejection_sampling": True},
    ),
]

FP8 = {"kv_cache_dtype": "fp8_e4m3"}
# Beside FP8 rows; what follows "--kv-cache-dtype fp8_e4m3 with ".
BESIDE_FP8: list[tuple[str, dict[str, Any]]] = [
    ("--dtype float16", {"dtype": "float16", **GPU}),
    *(
        (f"--{name.replace('_', '-')} {backend}", {name: backend, **GPU})
        for name, backend in (
            ("attention_backend", "flashinfer"),
            ("prefill_attention_backend", "triton"),
            ("decode_attention_backend", "flashmla"),
            ("speculative_draft_attention_backend", "fa4"),
        )
    ),
    ("--enable-deterministic-inference", {"enable_deterministic_inference": True, **GPU}),
    ("--speculative-algorithm STANDALONE", {**NEXTN, "speculative_algorithm": "STANDALONE"}),
    ("--quantization-param-path", {"quantization_param_path": "scales.json"}),
    *(
        (f"--{name.replace('_', '-')}", {name: True, **GPU})
        for name in (
            "disable_chunked_prefix_cache",
            "enable_hierarchical_cache",
            "disaggregation_decode_enable_offload_kvcache",
            "enable_lmcache",
            "enable_flexkv",
            "enable_unified_cache_external_linker",
        )
    ),
]
PREFILL_GRAPH = "LONGCAT_PREFILL_GRAPH=1"  # an environment variable

ACCEPTED: list[dict[str, Any]] = [
    {},
    {**FP8, **CPU},
    {**FP8, **CPU, **NEXTN, "speculative_draft_kv_cache_dtype": "fp8_e4m3"},
    {**FP8, **CPU, "dtype": "float32", "page_size": 4, "enable_mixed_chunk": True},
    *({"attention_backend": name, **GPU} for name in ("triton", "flashinfer", "fa3", "flashmla")),
    {"attention_backend": "torch_native", **CPU},
    {"kv_cache_dtype": "bf16"},
    {"kv_cache_dtype": "bfloat16", "dtype": "bfloat16"},
    {"load_format": "dummy"},
    {"quantization": "fp8"},
    {"tp_size": 2, "moe_dense_tp_size": 2},
    {"enable_hierarchical_cache": True, "enable_memory_saver": True, **GPU},
    {**NGRAM, "speculative_ngram_max_trie_depth": 18, "speculative_ngram_capacity": 19},
    {**NEXTN, "speculative_algorithm": "nextn"},
    {**NEXTN, "speculative_ngram_capacity": 0},  # without NGRAM nobody reads it
    # 13 tokens and the 3 before them fill the N-gram cache's ring
    *(
        {**NEXTN, "speculative_algorithm": name, "speculative_num_draft_tokens": window}
        for name in ("NEXTN", "EAGLE", "STANDALONE")
        for window in (2, 4, 13)
    ),
]


def arguments(**changes: Any) -> ServerArgs:
    """SGLang's own record, so that a renamed flag or a default that we refuse fails here."""
    return ServerArgs(model_path="none", **changes)


@pytest.fixture(autouse=True)
def without_deep_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.layers.deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM", False)


@pytest.mark.parametrize(("flag", "changes"), CASES, ids=lambda value: str(value)[:60])
def test_refused(flag: str, changes: dict[str, Any]) -> None:
    """The one message names the flag as typed and, after the colon, why and what to do. Red if a
    row is lost, or if another row refuses the same with other words."""
    with pytest.raises(UnsupportedFlag) as error:
        refuse_unsupported(arguments(**changes))
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith(flag)
    reason, _, remedy = line.partition(": ")[2].rpartition("; ")
    assert reason
    assert remedy


@pytest.mark.parametrize(
    ("stored", "changes"),
    [
        (None, {"quantization": "fp8"}),
        (None, {"quantization": "awq"}),
        (None, {"speculative_draft_model_quantization": "fp8"}),
        ("fp8", {"quantization": "unquant"}),
        ("fp8", {"quantization": "gptq"}),
        ("gptq", {"quantization": "auto-round"}),
        ("auto-round", {"quantization": "unquant"}),
    ],
)
def test_contradicts_the_checkpoint(stored: str | None, changes: dict[str, Any]) -> None:
    """Red if a flag quantises bf16 while loading, or reads quantised weights as another format."""
    ((name, value),) = changes.items()
    with pytest.raises(UnsupportedFlag) as error:
        refuse_contradictions(arguments(**changes), stored)
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith(f"--{name.replace('_', '-')} {value}: the checkpoint's weights")
    assert (stored or "unquantised") in line


@pytest.mark.parametrize(
    ("stored", "changes"),
    [
        *(
            (stored, {"quantization": name})
            for stored, names in BY_FORMAT.items()
            for name in names
        ),
        (
            None,
            {"speculative_draft_model_quantization": "fp8", "speculative_draft_model_path": "x"},
        ),
    ],
)
def test_says_what_the_checkpoint_says(stored: str | None, changes: dict[str, Any]) -> None:
    """Red if a flag is refused that is right. A draft of its own may have another format."""
    refuse_unsupported(arguments(**changes))
    refuse_contradictions(arguments(**changes), stored)


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_accepted(changes: dict[str, Any]) -> None:
    """Red if a refusal takes more than it says: defaults, and values that tests and recipes use."""
    refuse_unsupported(arguments(**changes))


@pytest.mark.parametrize(("flag", "changes"), BESIDE_FP8, ids=lambda value: str(value)[:60])
def test_refused_beside_fp8_rows(flag: str, changes: dict[str, Any]) -> None:
    """And served without them."""
    with pytest.raises(UnsupportedFlag) as error:
        refuse_unsupported(arguments(**FP8, **changes))
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip().startswith(f"--kv-cache-dtype fp8_e4m3 with {flag}: ")
    refuse_unsupported(arguments(**changes))


def test_prefill_graphs_are_refused_beside_fp8_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCAT_PREFILL_GRAPH", "1")
    refuse_unsupported(arguments(**GPU))
    with pytest.raises(UnsupportedFlag, match=PREFILL_GRAPH):
        refuse_unsupported(arguments(**FP8, **GPU))


@pytest.mark.parametrize("backend", [None, "fa3"])
def test_a_gpu_serves_fp8_rows(backend: str | None) -> None:
    refuse_unsupported(arguments(**FP8, **GPU, attention_backend=backend))


@pytest.mark.parametrize("backend", ["flashinfer", "triton", "trtllm_mla"])
def test_a_backend_of_sglangs_own_choice_is_refused_beside_fp8_rows(backend: str) -> None:
    """SGLang takes another one than fa3 on GPUs that are not Hopper, and nobody typed it."""
    for given in ({}, FP8):
        args = arguments(**given, **GPU)
        declare_resolution(args, "test", attention_backend=backend)
        refused = [line.partition(":")[0] for line in unsupported_flags(args)]
        expected = f"--kv-cache-dtype fp8_e4m3 with --attention-backend {backend}"
        assert refused == ([expected] if given else [])


@pytest.mark.parametrize("kind", ["auto", "bf16"])
def test_the_draft_has_the_kind_of_cache_that_the_target_has(kind: str) -> None:
    with pytest.raises(UnsupportedFlag, match=f"--speculative-draft-kv-cache-dtype {kind}: "):
        refuse_unsupported(arguments(**FP8, **CPU, speculative_draft_kv_cache_dtype=kind))


def test_every_row_has_a_case() -> None:
    """Red if somebody adds a refusal without a case above."""
    beside = [(flag, {**FP8, **changes}) for flag, changes in BESIDE_FP8]
    tables = (*refusals.ALWAYS, *refusals.RESOLVED)
    for table, least in ((tables, {}), (refusals.WITH_SPECULATION, NEXTN)):
        records = [arguments(**{**least, **changes}) for _, changes in CASES + beside]
        idle = [row.flag for row in table if not any(row.is_refused(args) for args in records)]
        assert [flag for flag in idle if PREFILL_GRAPH not in flag] == []


def test_the_smallest_capacity_is_said() -> None:
    flags = {**NGRAM, "speculative_ngram_max_trie_depth": 30, "speculative_ngram_capacity": 30}
    with pytest.raises(UnsupportedFlag, match="set it to 31 at least"):
        refuse_unsupported(arguments(**flags))


@pytest.mark.parametrize("runner", ["auto", "triton", "deep_gemm"])
def test_runners_that_skip_identity_slots(monkeypatch: pytest.MonkeyPatch, runner: str) -> None:
    monkeypatch.setattr("sglang.srt.layers.deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM", True)
    refuse_unsupported(arguments(moe_runner_backend=runner))

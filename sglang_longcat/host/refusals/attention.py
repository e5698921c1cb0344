"""Attention backends without latent attention, and KV caches that they cannot read."""

from __future__ import annotations

from typing import Any

from sglang_longcat.host.refusals.row import LEAVE_OUT, Refusal, on_cpu, on_gpu, on_gpu_only, switch

_GPU = ("triton", "flashinfer", "fa3", "fa4", "flashmla", "trtllm_mla", "cutedsl_mla")
_CPU = ("torch_native", "intel_amx")
_BACKEND_FLAGS = (
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
    "speculative_draft_attention_backend",
)


def _backend(name: str) -> tuple[Refusal, ...]:
    """On a CPU the kernels of a GPU's backends fail at the first request ("0 active drivers"). On a
    GPU `torch_native` is SGLang's, which has no latent attention; on a CPU it is ours."""
    flag = f"--{name.replace('_', '-')} {{args.{name}}}"
    gpu, cpu = ", ".join(_GPU), ", ".join(_CPU)
    return (
        Refusal(
            flag,
            lambda args: getattr(args, name) not in (None, *_GPU, *_CPU),
            "it cannot compute multi-head latent attention over this model's KV cache",
            f"leave it out, or use one of {gpu}",
        ),
        Refusal(
            flag,
            lambda args: on_cpu(args) and getattr(args, name) in _GPU,
            "its kernels need a GPU",
            f"leave it out, or use one of {cpu}",
        ),
        Refusal(
            flag,
            lambda args: on_gpu(args) and getattr(args, name) in _CPU,
            "it has no multi-head latent attention on a GPU",
            f"leave it out, or use one of {gpu}",
        ),
    )


def _is_model_type(args: Any, kv: str | None) -> bool:
    """Whether the KV cache has the type of the model. The published checkpoints are bfloat16."""
    bf16 = args.dtype in ("auto", "bfloat16") and kv in ("bf16", "bfloat16")
    return kv in (None, "auto") or bf16


# fa3 (flashattention_backend.py:2350) and flashinfer (flashinfer_mla_backend.py:822) call
# get_key_buffer(...).to(q.dtype) in each of the 28 attentions: a copy of the whole pool. One H200
# with fa3 ran out of memory at start. On a CPU SGLang refuses FP8. Other backends were not tried.
_KV = (
    "SGLang's fa3 and flashinfer copy the whole KV cache to the model's type in every layer, which "
    "runs out of memory, and no other backend is tested"
)


def _kv_cache(name: str) -> Refusal:
    return Refusal(
        f"--{name.replace('_', '-')} {{args.{name}}}",
        lambda args: not _is_model_type(args, getattr(args, name)),
        _KV,
        "leave it out: the KV cache has the model's type",
    )


ROWS = (
    *(row for name in _BACKEND_FLAGS for row in _backend(name)),
    _kv_cache("kv_cache_dtype"),
    _kv_cache("speculative_draft_kv_cache_dtype"),
    on_gpu_only("--enable-hierarchical-cache"),
    switch("--enable-unified-memory", "not tested, it is for models with several kinds of caches"),
    switch("--enable-page-major-kv-layout", "not tested, our kernels read the plain layout"),
    switch("--enable-hisparse", "the model has no sparse attention"),
    # Items of one sequence must not see each other. SGLang's mask hides their keys, but the first
    # tokens of an item would be hashed with the last ones of the item before.
    switch("--enable-mis", "the N-gram embedding of an item would look into the item before it"),
    Refusal(
        flag="--dllm-algorithm {args.dllm_algorithm}",
        is_refused=lambda args: args.dllm_algorithm is not None,
        reason="the model is no diffusion model",
        remedy=LEAVE_OUT,
    ),
)

"""Attention backends without latent attention, and layouts of the KV cache."""

from __future__ import annotations

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


ROWS = (
    *(row for name in _BACKEND_FLAGS for row in _backend(name)),
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

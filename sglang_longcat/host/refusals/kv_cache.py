"""Types of the KV cache, and what cannot be served together with FP8 rows."""

from __future__ import annotations

from typing import Any

from sglang_longcat import env
from sglang_longcat.host.kv_cache import FP8_ROWS
from sglang_longcat.host.refusals.row import LEAVE_OUT, Refusal, field, on_gpu

_FLAG = f"--kv-cache-dtype {FP8_ROWS}"
_OTHER = (
    "SGLang's fa3 and flashinfer copy the whole KV cache to the model's type in every layer, which "
    "runs out of memory, and no other backend is tested"
)
_MOVES_VALUES = "it moves rows of the KV cache elsewhere, and is not tested with FP8 rows"


def _is_model_type(args: Any, kv: str | None) -> bool:
    """Whether the KV cache has the type of the model. The published checkpoints are bfloat16."""
    bf16 = args.dtype in ("auto", "bfloat16") and kv in ("bf16", "bfloat16")
    return kv in (None, "auto") or bf16


def _is_fp8(args: Any) -> bool:
    return bool(args.kv_cache_dtype == FP8_ROWS)


def _draft_differs(args: Any) -> bool:
    """The hooks give both caches the same kind."""
    kv = args.speculative_draft_kv_cache_dtype
    return kv not in (None, FP8_ROWS) if _is_fp8(args) else not _is_model_type(args, kv)


def _beside(flag: str, reason: str) -> Refusal:
    """Refuses a switch that is set where rows are FP8."""
    name = field(flag)
    return Refusal(
        f"{_FLAG} with {flag}",
        lambda args: _is_fp8(args) and bool(getattr(args, name)),
        reason,
        "leave one of the two out",
    )


def _backend(name: str) -> Refusal:
    return Refusal(
        f"{_FLAG} with --{name.replace('_', '-')} {{args.{name}}}",
        lambda args: _is_fp8(args) and on_gpu(args) and getattr(args, name) not in (None, "fa3"),
        "only fa3 on a Hopper GPU leaves FP8 rows to our kernels",
        "use fa3, or leave the type of the KV cache out",
    )


ROWS = (
    Refusal(
        "--kv-cache-dtype {args.kv_cache_dtype}",
        lambda args: not (_is_fp8(args) or _is_model_type(args, args.kv_cache_dtype)),
        _OTHER,
        f"leave it out: the KV cache has the model's type; or use {FP8_ROWS}",
    ),
    Refusal(
        "--speculative-draft-kv-cache-dtype {args.speculative_draft_kv_cache_dtype}",
        _draft_differs,
        "the draft's KV cache has the type of the target's",
        LEAVE_OUT,
    ),
    Refusal(
        f"{_FLAG} with --dtype {{args.dtype}}",
        lambda args: _is_fp8(args) and on_gpu(args) and args.dtype not in ("auto", "bfloat16"),
        "our kernels read FP8 rows as bfloat16",
        "use --dtype bfloat16",
    ),
    *map(
        _backend,
        (
            "prefill_attention_backend",
            "decode_attention_backend",
            "speculative_draft_attention_backend",
        ),
    ),
    Refusal(
        f"{_FLAG} with --enable-deterministic-inference",
        lambda args: _is_fp8(args) and on_gpu(args) and args.enable_deterministic_inference,
        "our attention kernel deals keys out by the size of the batch",
        "leave one of the two out",
    ),
    Refusal(
        f"{_FLAG} with LONGCAT_PREFILL_GRAPH=1",
        lambda args: _is_fp8(args) and env.prefill_graph(),
        "a captured prefill reads the KV cache with fa3, which cannot read FP8 rows",
        "leave one of the two out",
    ),
    Refusal(
        f"{_FLAG} with --speculative-algorithm {{args.speculative_algorithm}}",
        lambda args: _is_fp8(args) and (args.speculative_algorithm or "").upper() == "STANDALONE",
        "the draft model would get SGLang's FP8 KV cache, which has no scales",
        "use NEXTN or NGRAM",
    ),
    _beside("--quantization-param-path", "FP8 rows have scales of their own"),
    _beside("--disable-chunked-prefix-cache", "a cached prefix is widened chunk by chunk"),
    _beside("--enable-hierarchical-cache", _MOVES_VALUES),
    _beside("--disaggregation-decode-enable-offload-kvcache", _MOVES_VALUES),
    _beside("--enable-lmcache", _MOVES_VALUES),
    _beside("--enable-flexkv", _MOVES_VALUES),
    _beside("--enable-unified-cache-external-linker", _MOVES_VALUES),
)
# The backend for all attention is read after SGLang chose it: fa3 on Hopper, another one elsewhere.
CHOSEN = (_backend("attention_backend"),)

"""Each Triton and Gluon kernel through the real compiler, for Hopper, on a machine without a GPU.

The interpreter accepts programs that the compiler refuses (types that change in a loop, say).
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing to compile")

FINALIZE = {
    **dict.fromkeys(("out", "routed", "x", "addend"), "*bf16"),
    "ids": "*i32",
    "weight": "*fp32",
}
ATTEND = {
    **dict.fromkeys(("q_nope", "q_pe", "latents", "ropes", "scales", "partial"), "*bf16"),
    **dict.fromkeys(("requests", "positions"), "*i64"),
    "lse": "*fp32",
    "pages": "*i32",
}
COMBINED = {
    **dict.fromkeys(("out", "weight", "partial"), "*bf16"),
    **dict.fromkeys(("lse", "out_scales"), "*fp32"),
    "positions": "*i64",
}
POINTERS = {
    "_ngram_kernel": {
        **dict.fromkeys(("tokens", "positions", "slots", "powers", "moduli", "offsets"), "*i64"),
        **dict.fromkeys(("starts", "lengths", "ring"), "*i32"),
        **dict.fromkeys(("eos", "inverses"), "*i64"),
        "out": "*i64",
        "rows": "*i64",
    },
    "_route_kernel": {
        **dict.fromkeys(("parts", "bias", "weights", "identity"), "*fp32"),
        "ids": "*i32",
        "slots": "*i64",
    },
    "_logits_kernel": {"x": "*bf16", "weight": "*fp32", "parts": "*fp32"},
    "_many_logits_kernel": {"x": "*bf16", "weight": "*fp32", "logits": "*fp32"},
    **dict.fromkeys(("_gemv_kernel", "_mma_kernel"), dict.fromkeys(("x", "w", "out"), "*bf16")),
    "_packed_kernel": {**dict.fromkeys(("x", "w", "s"), "*i32"), "out": "*bf16"},
    "_add_identity_kernel": {"out": "*bf16", "x": "*bf16", "weight": "*fp32"},
    "_norm_and_store_kernel": {
        **dict.fromkeys(("qkv", "q_weight", "kv_weight", "kv_buffer", "out", "scales"), "*bf16"),
        **dict.fromkeys(("ropes", "kv_scales"), "*bf16"),
        **dict.fromkeys(("positions", "slots"), "*i64"),
        "cos_sin": "*fp32",
    },
    "_expand_kernel": {
        "latents": "*fp8e4nv",
        "ropes": "*bf16",
        "scales": "*fp32",
        "slots": "*i64",
        "out": "*bf16",
    },
    "_store_kernel": {
        **dict.fromkeys(("latent", "rope", "ropes"), "*bf16"),
        "latents": "*fp8e4nv",
        "scales": "*fp32",
        "slots": "*i64",
    },
    "_split_kernel": ATTEND,
    **dict.fromkeys(("_hopper_kernel", "_hopper_fp8_kernel"), ATTEND),
    "_combine_kernel": COMBINED,
    "_combine_values_kernel": COMBINED,
    "_absorb_query_kernel": {
        **dict.fromkeys(("q", "weight", "out"), "*bf16"),
        "positions": "*i64",
        "cos_sin": "*fp32",
    },
    "_finalize_kernel": FINALIZE,
    "_finalize_norm_kernel": {**FINALIZE, "residual": "*bf16", "norm": "*bf16", "eps": "fp32"},
}
FP8_KEYS = {"latents": "*fp8e4nv", "scales": "*fp32"}
ALIGNED = ("latents_ptr", "ropes_ptr", "scales_ptr", "latent_stride")  # for copies of 16 bytes
SHARED = 227 << 10  # bytes that a block may have on Hopper
BF16 = {"rows": "*bf16", "out": "*bf16"}
FP8 = {"rows": "*fp8e4nv", "out": "*bf16"}
INT4 = {"rows": "*u8", "out": "*bf16"}
NGRAM = {"RING": 16, "N": 4, "EOS": 2, "BLOCK": 16, "GROUP": 32, "PDL": True}
IDS = {**NGRAM, "ROWS": False, "FORMAT": "plain", "COLUMNS": 1}
ROWS = {**NGRAM, "ROWS": True, "COLUMNS": 256}
WIDTHS = {"LATENT": 512, "ROPE": 64, "PDL": True}
STORE = {**WIDTHS, "Q": 1536, "Q_BLOCK": 2048, "LATENT_BLOCK": 512, "GROUP": 0, "FP8": False}
FP8_ROWS = {"kv_buffer": "*fp8e4nv", "kv_scales": "*fp32"}
QUANTISED = {"out": "*fp8e4nv", "scales": "*fp32"}
ABSORB = {**WIDTHS, "NOPE": 128, "NOPE_BLOCK": 128, "COLUMNS": 64, "TILES": 8}
MLA = {"RANK": 512, "ROPE": 64, "PDL": True}
DECODE = {**MLA, "WIDTH": 1, "HEADS": 32, "KEYS": 64, "TOKENS": 32, "FP8": False}
MEAN = {"RANK": 512, "MOST": 256, "AHEAD": 3, "PDL": True, "KEYS": 64, "TOKENS": 32}
COMBINE = {**MEAN, "CHUNK": 8, "COLUMNS": 512}
VALUES = {**MEAN, "VALUES": 128, "CHUNK": 16, "COLUMNS": 64, "QUANTISE": False}
QUANTISED = {**VALUES, "COLUMNS": 128, "QUANTISE": True}
ROUTE = {"K": 12, "SLOTS": 16, "PADDED": True, "PDL": True}
LOGITS = {"BLOCK_E": 64, "BLOCK_K": 128, "PDL": True}
TILE = {"BLOCK_E": 64, "BLOCK_T": 128, "BLOCK_K": 64, "STAGES": 3}
LINEAR = {"K": 1600, "BLOCK_N": 16, "BLOCK_K": 256, "PDL": True}
PACKED = {"K": 3072, "GROUP": 128, "LANES": 2, "SLOTS": 16, "SPAN": 4, "AHEAD": 2, "PDL": True}
MMA = {**LINEAR, "AHEAD": 1, "STAGES": 4}
CASES = [
    ("ngram", "_ngram_kernel", {}, {**IDS, "WIDTH": 0}, 1),
    ("ngram", "_ngram_kernel", {}, {**IDS, "WIDTH": 4}, 1),
    ("ngram", "_ngram_kernel", BF16, {**ROWS, "WIDTH": 0, "FORMAT": "plain"}, 4),
    ("ngram", "_ngram_kernel", FP8, {**ROWS, "WIDTH": 1, "FORMAT": "fp8"}, 4),
    ("ngram", "_ngram_kernel", INT4, {**ROWS, "WIDTH": 4, "FORMAT": "int4"}, 4),
    ("moe_router", "_route_kernel", {}, {**ROUTE, "SPLITS": 1, "GROUPS": 1, "WIDTH": 512}, 1),
    ("moe_router", "_route_kernel", {}, {**ROUTE, "SPLITS": 24, "GROUPS": 4, "WIDTH": 128}, 4),
    ("moe_router", "_logits_kernel", {}, {**LOGITS, "BLOCK_T": 8}, 4),
    ("moe_router", "_logits_kernel", {}, {**LOGITS, "BLOCK_T": 64}, 4),
    ("moe_router", "_many_logits_kernel", {}, {**TILE, "PDL": True}, 4),
    ("expert_sum", "_add_identity_kernel", {}, {"BLOCK": 1024}, 4),
    ("kv_expand", "_expand_kernel", {}, {"RANK": 512, "ROPE": 64, "ROWS": 8}, 4),
    ("kv_store", "_store_kernel", {}, {"RANK": 512, "ROPE": 64}, 4),
    ("mla_decode", "_split_kernel", {}, DECODE, 8),
    ("mla_decode", "_split_kernel", {}, {**DECODE, "WIDTH": 4, "HEADS": 16}, 8),
    ("mla_decode", "_split_kernel", FP8_KEYS, {**DECODE, "FP8": True}, 8),
    ("mla_decode", "_split_kernel", FP8_KEYS, {**DECODE, "FP8": True, "WIDTH": 4}, 8),
    ("mla_decode", "_hopper_kernel", {}, DECODE, 8),
    ("mla_decode", "_hopper_kernel", {}, {**DECODE, "WIDTH": 4, "HEADS": 16, "TOKENS": 64}, 8),
    ("mla_decode", "_hopper_fp8_kernel", FP8_KEYS, {**DECODE, "FP8": True}, 8),
    ("mla_decode", "_hopper_fp8_kernel", FP8_KEYS, {**DECODE, "FP8": True, "TOKENS": 256}, 8),
    (
        "mla_decode",
        "_hopper_fp8_kernel",
        FP8_KEYS,
        {**DECODE, "FP8": True, "WIDTH": 4, "HEADS": 16},
        8,
    ),
    ("mla_decode", "_combine_kernel", {}, COMBINE, 4),
    ("mla_decode", "_combine_values_kernel", {}, {**VALUES, "weight_rank": 1}, 8),
    ("mla_decode", "_combine_values_kernel", {}, {**VALUES, "weight_column": 1}, 8),
    ("mla_decode", "_combine_values_kernel", {"out": "*fp8e4nv"}, QUANTISED, 8),
    *(
        ("mla_prologue", kernel, {}, {**constants, "NEOX": neox}, 4)
        for neox in (False, True)
        for kernel, constants in (
            ("_norm_and_store_kernel", STORE),
            ("_absorb_query_kernel", {**ABSORB, "TOKENS": 16}),
            ("_absorb_query_kernel", {**ABSORB, "TOKENS": 64}),
        )
    ),
    (
        "mla_prologue",
        "_norm_and_store_kernel",
        QUANTISED,
        {**STORE, "GROUP": 128, "NEOX": False},
        4,
    ),
    *(
        (
            "mla_prologue",
            "_norm_and_store_kernel",
            {**FP8_ROWS, **types},
            {**STORE, "GROUP": group, "NEOX": False, "FP8": True},
            4,
        )
        for group, types in ((0, {}), (128, QUANTISED))
    ),
    (
        "expert_sum",
        "_finalize_kernel",
        {},
        {"K": 12, "IDENTITY": True, "ADDEND": True, "BLOCK": 1024, "PDL": True},
        4,
    ),
    (
        "expert_sum",
        "_finalize_norm_kernel",
        {},
        {"K": 12, "IDENTITY": True, "ADDEND": True, "BLOCK": 4096, "PDL": True},
        16,
    ),
    ("small_linear", "_gemv_kernel", {}, {**LINEAR, "SWIGLU": False, "AHEAD": 2}, 4),
    ("small_linear", "_gemv_kernel", {}, {**LINEAR, "SWIGLU": True, "AHEAD": 9}, 4),
    *(
        ("small_linear", "_mma_kernel", {}, {**MMA, "SWIGLU": swiglu, "TOKENS": tokens}, 4)
        for swiglu, tokens in ((True, 16), (False, 32))
    ),
    *(
        ("packed_linear", "_packed_kernel", {}, {**PACKED, "SWIGLU": swiglu, "TOKENS": tokens}, 4)
        for swiglu, tokens in ((False, 1), (True, 1), (True, 4))
    ),
]


@pytest.mark.parametrize(("op", "kernel", "types", "constants", "warps"), CASES)
def test_the_kernel_compiles_for_hopper(
    op: str, kernel: str, types: dict[str, str], constants: dict[str, Any], warps: int
) -> None:
    compiled = compile_for_hopper(op, kernel, types, constants, warps)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= SHARED


def compile_for_hopper(
    op: str, kernel: str, types: dict[str, str], constants: dict[str, Any], warps: int
) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    file = kernel.removesuffix("_kernel") if "hopper" in kernel else "_triton"
    function = getattr(importlib.import_module(f"longcat_kernels.{op}.{file}"), kernel)
    pointers, scalars = {**POINTERS[kernel], **types}, {"scale": "fp32", "eps": "fp32"}
    signature = {
        name: "constexpr"
        if name in constants
        else pointers.get(name.removesuffix("_ptr"), scalars.get(name, "i32"))
        for name in function.arg_names
    }
    kind = GluonASTSource if function.is_gluon() else ASTSource
    # FP8 rows are 41 words of 16 bytes: the stride counts words, and 16 does not divide it.
    names = [n for n in ALIGNED if not (n == "latent_stride" and constants.get("FP8"))]
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in names}
    source = kind(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})


def test_hopper_takes_what_its_kernel_was_made_for() -> None:
    """Red if it gets rows that loads of 16 bytes cannot read, or sizes that have never run."""
    import torch

    from longcat_kernels.mla_decode import _hopper

    def supports(heads: int = 32, rank: int = 512, rope: int = 64, skipped: int = 0) -> bool:
        latents = torch.empty(4, rank + rope + 16, dtype=torch.bfloat16)[:, skipped:]
        query = torch.empty(1, heads, rank, dtype=torch.bfloat16)
        return _hopper.supports(query, query[..., :rope], latents)

    assert supports()
    assert supports(heads=1)
    assert supports(skipped=8)
    assert not supports(skipped=4)
    assert not supports(heads=33)
    assert not supports(rank=256)
    assert not supports(rope=32)


def test_hopper_takes_fp8_rows_with_their_own_kernel() -> None:
    """Red if bytes of FP8 rows get the kernel that reads bf16, or the other way round."""
    import torch

    from longcat_kernels.compile_only import compile_only
    from longcat_kernels.mla_decode import launch

    def kernel(heads: int, dtype: torch.dtype) -> str:
        query = torch.empty(1, heads, 512, dtype=torch.bfloat16)
        with compile_only():
            taken = launch._kernel_for(query, query[..., :64], torch.empty(4, 656, dtype=dtype))
        return taken.__name__

    assert kernel(32, torch.uint8) == "_hopper_fp8_kernel"
    assert kernel(33, torch.uint8) == "_split_kernel"
    assert kernel(32, torch.bfloat16) == "_hopper_kernel"

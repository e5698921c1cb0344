"""Each Triton kernel through the real compiler, for Hopper, on a machine without a GPU.

The interpreter accepts programs that the compiler refuses (types that change in a loop, say).
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing to compile")

POINTERS = {
    "_ngram_kernel": {
        **dict.fromkeys(("tokens", "positions", "slots", "powers", "moduli", "offsets"), "*i64"),
        **dict.fromkeys(("starts", "lengths", "ring"), "*i32"),
        **dict.fromkeys(("eos", "inverses"), "*i64"),
        "out": "*i64",
        "rows": "*i64",
    },
    "_route_kernel": {
        **dict.fromkeys(("logits", "bias", "weights", "identity"), "*fp32"),
        "ids": "*i32",
    },
    **dict.fromkeys(("_gemv_kernel", "_mma_kernel"), dict.fromkeys(("x", "w", "out"), "*bf16")),
    "_add_identity_kernel": {"out": "*bf16", "x": "*bf16", "weight": "*fp32"},
}
BF16 = {"rows": "*bf16", "out": "*bf16"}
FP8 = {"rows": "*fp8e4nv", "out": "*bf16"}
NGRAM = {"RING": 16, "N": 4, "EOS": 2, "BLOCK": 16, "PDL": True}
IDS = {**NGRAM, "ROWS": False, "SCALED": False, "COLUMNS": 1}
ROWS = {**NGRAM, "ROWS": True, "COLUMNS": 256}
LINEAR = {"K": 1600, "BLOCK_N": 16, "BLOCK_K": 256, "PDL": True}
CASES = [
    ("ngram_ids", "_ngram_kernel", {}, {**IDS, "WIDTH": 0}, 1),
    ("ngram_ids", "_ngram_kernel", {}, {**IDS, "WIDTH": 4}, 1),
    ("ngram_ids", "_ngram_kernel", BF16, {**ROWS, "WIDTH": 0, "SCALED": False}, 4),
    ("ngram_ids", "_ngram_kernel", FP8, {**ROWS, "WIDTH": 1, "SCALED": True}, 4),
    ("moe_router", "_route_kernel", {}, {"K": 12, "BLOCK": 512}, 2),
    ("identity_experts", "_add_identity_kernel", {}, {"BLOCK": 1024}, 4),
    ("small_linear", "_gemv_kernel", {}, {**LINEAR, "SWIGLU": False, "AHEAD": 2}, 4),
    ("small_linear", "_gemv_kernel", {}, {**LINEAR, "SWIGLU": True, "AHEAD": 9}, 4),
    ("small_linear", "_mma_kernel", {}, {**LINEAR, "SWIGLU": True, "AHEAD": 1, "STAGES": 4}, 4),
]


@pytest.mark.parametrize(("op", "kernel", "types", "constants", "warps"), CASES)
def test_the_kernel_compiles_for_hopper(
    op: str, kernel: str, types: dict[str, str], constants: dict[str, Any], warps: int
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(f"longcat_kernels.{op}._triton"), kernel)
    pointers, scalars = {**POINTERS[kernel], **types}, {"scale": "fp32"}
    signature = {
        name: "constexpr"
        if name in constants
        else pointers.get(name.removesuffix("_ptr"), scalars.get(name, "i32"))
        for name in function.arg_names
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}
    )
    assert compiled.asm["cubin"]

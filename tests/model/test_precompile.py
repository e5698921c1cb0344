"""Kernels compiled ahead, in a whole engine that takes its CPU for a Hopper GPU while it starts.

The real child processes run beside the engine. DeepGEMM's has a compiler that pretends, except for
the stand-in of CUDA. Owns: that both start with the model, know its sizes, and are joined.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from longcat_kernels.deep_gemm_cache.compilers import CompilerError, find_nvcc
from tests.harness import engine
from tests.model import injected
from tests.model.scoring import ask, text
from tests.model.test_fp8 import write_fp8

PLUGIN = """
from types import SimpleNamespace

import torch
from sglang_longcat.plugin import register as register_longcat

def register():
    register_longcat()  # whichever of the two plugins SGLang loads first
    from sglang_longcat.host import precompile
    from sglang_longcat.layers import fp8_inputs
    precompile._enabled = lambda: True
    fp8_inputs.uses_deep_gemm = lambda _: True
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(multi_processor_count=132)
"""
COMPILER = """#!/bin/sh
case "$*" in
    *--cubin*) while [ "$1" != --output-file ]; do shift; done; printf '\\177ELF0000' > "$2";;
    *) exec {nvcc} "$@";;
esac
"""


@pytest.fixture
def forced(tmp_path: Path) -> dict[str, str]:
    try:
        nvcc = find_nvcc()
    except CompilerError as error:
        pytest.skip(str(error))
    compiler = tmp_path / "nvcc"
    compiler.write_text(COMPILER.format(nvcc=nvcc))
    compiler.chmod(0o755)
    return {
        **injected.plugin(tmp_path, "forced_hopper", PLUGIN),
        "DG_JIT_NVCC_COMPILER": str(compiler),
        "SGLANG_DG_CACHE_DIR": str(tmp_path / "deep_gemm"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "LONGCAT_PARALLEL_COMPILE": "1",
    }


def test_kernels_are_compiled_while_weights_load(tmp_path: Path, forced: dict[str, str]) -> None:
    """Red if the sizes are not known yet where the children start, or the start does not wait."""
    path = write_fp8(tmp_path / "tiny")
    with engine(path, env=forced, log_level="info") as llm:
        ask(llm, [text(9, seed=1)], logprobs_from=0, max_new_tokens=2)
        log = llm.log
    deep_gemm = re.search(r"DeepGEMM: compiled ahead in \S+ s, (\d+) of them new", log)
    assert deep_gemm, log
    assert int(deep_gemm[1]) == len(list((tmp_path / "deep_gemm").rglob("*.cubin"))) > 4
    assert "Triton kernels: compiled ahead in" in log
    assert len(list((tmp_path / "triton").rglob("*.cubin"))) > 5  # fp32 here: some of them

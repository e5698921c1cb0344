"""LongCat-nano on GPUs in bf16 with CUDA graphs: the perplexity and gaps of the CPU's bf16.

Prompts are read by the extend path; `decode_gap` is about tokens that captured graphs gave.
"""

from __future__ import annotations

from typing import Any

import pytest

from ci.accuracy.nano import Oracle, Text, measure
from ci.accuracy.report import judge, markdown, thresholds
from sglang_longcat.assets import nano
from tests.harness import engine

GPU: dict[str, Any] = {
    "device": "cuda",
    "dtype": "bfloat16",
    "disable_cuda_graph": False,
    "max_total_tokens": 16384,
    "mem_fraction_static": 0.9,
}


def check(**flags: Any) -> None:
    text = Text.of(nano())
    oracle = Oracle.of(nano(), text)
    with engine(nano(), spawn=True, timeout=400, **GPU, **flags) as llm:
        measured = measure(llm.generate, text, oracle)
    rows = judge(measured, thresholds("nano", "bfloat16"), prefix=f"GPU {flags}")
    print(f"\n{markdown(rows)}")
    assert all(row.passed for row in rows), markdown(rows)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["fa3", "flashinfer"])
def test_one_gpu(backend: str) -> None:
    """Red if a GPU kernel or a captured graph departs from the model by more than bf16 does."""
    check(attention_backend=backend)


@pytest.mark.multi_gpu
@pytest.mark.parametrize("ep_size", [1, 2])
def test_two_gpus(ep_size: int) -> None:
    """Red if two ranks are another model than one."""
    check(attention_backend="flashinfer", tp_size=2, ep_size=ep_size)

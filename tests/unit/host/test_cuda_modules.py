"""Modules are built side by side, under the names that a forward asks for."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from sglang.kernels.jit import utils
from sglang.kernels.ops.quantization import per_token_group_quant as quant

from longcat_kernels.background import BackgroundError
from sglang_longcat.host import cuda_modules
from sglang_longcat.host.cuda_modules import (
    CudaModules,
    _quantiser,
    _quantising_norm,
    before_graphs,
    before_requests,
)
from sglang_longcat.recipes.choose import published


def test_builds_run_side_by_side() -> None:
    """Red if one waits for another, or a start waits for what only a request needs."""
    both, end = threading.Barrier(2, timeout=10), threading.Event()
    modules = CudaModules([both.wait], [both.wait, end.wait])
    assert 0 <= modules.join() < 10
    end.set()


def test_a_failed_build_says_why() -> None:
    def fail() -> None:
        raise OSError("nvcc not found")

    with pytest.raises(BackgroundError, match="OSError: nvcc not found"):
        CudaModules([fail]).join()


def test_a_build_that_never_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_modules, "LONGEST", 0.1)
    end = threading.Event()
    with pytest.raises(BackgroundError, match=r"not ready after 0\.1 s"):
        CudaModules([end.wait]).join()
    end.set()


def test_a_build_that_nobody_waits_for_says_why_it_failed(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("nvcc not found")

    CudaModules([], [fail])
    for thread in threading.enumerate():
        if thread.name == "longcat-cuda-module":
            thread.join(10)
    assert "a CUDA module was not built ahead: OSError: nvcc not found" in caplog.text


def test_a_failed_start_does_not_wait_for_builds() -> None:
    """Red if the interpreter joins the threads of builds when it ends."""
    program = """
import time
from sglang_longcat.host.cuda_modules import CudaModules
CudaModules([lambda: time.sleep(60)])
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=50, check=False).returncode == 0


def test_only_speculation_needs_the_tree() -> None:
    assert [len(before_requests(drafts=drafts)) for drafts in (False, True)] == [1, 2]


@pytest.mark.parametrize(("weights", "more"), [("bf16", 0), ("block-fp8", 4), ("int4", 3)])
def test_only_what_the_weights_need(
    monkeypatch: pytest.MonkeyPatch, weights: str, more: int
) -> None:
    monkeypatch.setattr(utils, "is_arch_support_pdl", lambda: True)
    loaders = before_graphs(published(weights), shares_experts=False)
    assert len(loaders) == 4 + more
    assert (_quantising_norm in loaders) == (weights == "block-fp8")  # 37 s of nvcc


@pytest.mark.parametrize(("columns", "swiglu"), [(False, False), (True, False), (True, True)])
def test_the_quantiser_is_the_one_that_sglang_asks_for(
    monkeypatch: pytest.MonkeyPatch, columns: bool, swiglu: bool
) -> None:
    """Red if SGLang asks for another variant, or by other arguments, which would build it twice."""
    asked: list[tuple[Any, ...]] = []

    class Module:
        def per_token_group_quant(self, *_tensors: torch.Tensor) -> None: ...

    def jit_module(*arguments: Any) -> Module:
        asked.append(arguments)
        return Module()

    monkeypatch.setattr(quant, "_jit_module", jit_module)
    for owner in (quant, utils):
        monkeypatch.setattr(owner, "is_arch_support_pdl", lambda: True)
    scales = torch.empty(3, 2).t().contiguous().t() if columns else torch.empty(3, 2)
    values = torch.empty(3, 256, dtype=torch.float8_e4m3fn)
    call = inspect.unwrap(quant._per_token_group_quant_custom_op)  # the operator is CUDA's only
    inputs = torch.empty(3, 512 if swiglu else 256, dtype=torch.bfloat16)
    mode = {"fuse_silu_and_mul": True, "silu_and_mul_mode": "dense"} if swiglu else {}
    call(inputs, values, scales, 128, **mode)
    _quantiser(row_major=not columns, swiglu=swiglu)
    assert asked[0] == asked[1]

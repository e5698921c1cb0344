"""Runs each kernel test on every implementation that this process can run.

Owns: the `device` fixture. Tests call the public functions only. On "cpu" these run the torch
reference, on "cuda" Triton. With TRITON_INTERPRET=1 they run Triton on CPU tensors. Triton reads
that variable when it is imported, which other tests may have done before, so test_interpreter.py
sets it for a separate pytest process.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.kernels.kernel_ops import OPS

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["interpreter"] if INTERPRETED else ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "interpreter":
        return request.param
    for op in OPS:
        monkeypatch.setattr(f"longcat_kernels.{op}.use_triton", lambda tensor: True)
    _multiply_bf16(monkeypatch)
    _round_to_fp8(monkeypatch)
    return "cpu"


def _multiply_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.8's interpreter keeps bf16 as 16-bit integers, and tl.dot multiplies those."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot = InterpreterBuilder.create_dot

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        bits = operand.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


def _round_to_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.8's interpreter loses the carry where a mantissa rounds up to the next power."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    convert = InterpreterBuilder.create_fp_to_fp

    def create_fp_to_fp(self: Any, source: Any, target: Any, *rest: Any) -> Any:
        if target.scalar != tl.float8e4nv:
            return convert(self, source, target, *rest)
        rounded = torch.from_numpy(source.data).to(torch.float8_e4m3fn)
        return TensorHandle(rounded.view(torch.uint8).numpy(), tl.float8e4nv)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_to_fp", create_fp_to_fp)

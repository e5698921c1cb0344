"""Runs each kernel test on every implementation this process can run.

Owns: the `device` fixture. Tests call the public functions only: on "cpu" these take the torch
reference, on "cuda" Triton. With TRITON_INTERPRET=1 they take Triton on CPU tensors. Triton reads
that variable when it is imported, which other tests may have done before, so test_interpreter.py
sets it for a pytest process of its own.
"""

from __future__ import annotations

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = ["interpreter"] if INTERPRETED else ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "interpreter":
        return request.param
    for op in ("ngram_ids", "ngram_rows", "moe_router", "identity_experts", "expert_finalize"):
        monkeypatch.setattr(f"longcat_kernels.{op}.use_triton", lambda tensor: True)
    return "cpu"

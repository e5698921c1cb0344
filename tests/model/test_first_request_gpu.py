"""The first request to a GPU server finds every kernel of ours compiled.

`tests/kernels/test_warm_up.py` proves it op by op; here the server itself readies them, with the
sizes of its checkpoint. SGLang's own warm-up request is off.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from longcat_kernels.warm_up import OPS
from tests.harness import engine
from tests.model.scoring import ask, text


def our_kernels() -> set[str]:
    """Those that are launched; others are inlined into them."""
    from triton import JITFunction

    modules = [importlib.import_module(f"longcat_kernels.{op}._triton") for op in OPS]
    attributes = [value for module in modules for value in vars(module).values()]
    names = {value.__name__ for value in attributes if isinstance(value, JITFunction)}
    return {name for name in names if name.endswith("_kernel")}


@pytest.mark.gpu
def test_nothing_of_ours_is_compiled_by_requests(tiny: Path, tmp_path: Path) -> None:
    """Red if the server does not ready its kernels, or readies them for other sizes than it
    launches (not all of ours: some shapes and steps are the libraries'). Without CUDA graphs, whose
    capture would launch the decode kernels too."""
    names = our_kernels()

    def compiled() -> set[Path]:
        return {file for file in tmp_path.glob("*/*.cubin") if file.stem in names}

    with engine(
        tiny,
        device="cuda",
        dtype="bfloat16",
        spawn=True,
        timeout=400,
        mem_fraction_static=0.5,
        attention_backend="flashinfer",
        chunked_prefill_size=16,
        env={"TRITON_CACHE_DIR": str(tmp_path)},
    ) as llm:
        assert "Triton kernels: " in llm.log
        ready = compiled()
        assert ready
        ask(llm, [text(length, seed=length) for length in (1, 2, 15, 16, 17, 40)])
        assert compiled() == ready

"""What the machine code of attention over FP8 rows must look like on Hopper, without a GPU.

ptxas may put a wait behind each wgmma and only note it. Results stay right; time is lost.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.kernels.test_compile import DECODE, FP8_KEYS, SHARED, compile_for_hopper

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing to compile")
KERNEL = "_hopper_fp8_kernel"


@cache
def compiled(heads: int) -> Any:
    constants = {**DECODE, "FP8": True, "HEADS": heads}
    return compile_for_hopper("mla_decode", KERNEL, FP8_KEYS, constants, 8)


def tool(name: str, option: str, heads: int) -> str:
    """What one of the CUDA tools that Triton brings says about the machine code."""
    import triton

    binary = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled(heads).asm["cubin"])
        done = subprocess.run([binary, option, cubin], check=True, capture_output=True, text=True)
    return done.stdout


def main_loop(heads: int) -> list[str]:
    """The instructions of the loop with the most wgmma, in their order, without predicates."""
    code: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for line in tool("nvdisasm", "-c", heads).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        if found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@\S+ )?(.+?);", line):
            code.append(found[1])
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", found[1])
            if back and back[1] in labels:
                loops.append(code[labels[back[1]] :])
    return max(loops, key=lambda loop: sum("HGMMA" in step for step in loop))


@pytest.mark.parametrize("heads", [32, 16])
def test_it_fits_without_a_spill(heads: int) -> None:
    """Red if a block takes more shared memory than Hopper has, or registers go to memory."""
    assert compiled(heads).metadata.shared <= SHARED
    usage = tool("cuobjdump", "-res-usage", heads)
    assert re.search(r"STACK:0 .*LOCAL:0 ", usage), usage


@pytest.mark.parametrize("heads", [32, 16])
def test_wgmma_is_waited_for_twice_a_block(heads: int) -> None:
    """Red if ptxas serialises: then 52 products of a block have a wait each."""
    loop = main_loop(heads)
    assert sum(step.startswith("HGMMA") for step in loop) == 52
    assert sum(step.startswith("WARPGROUP.DEPBAR") for step in loop) == 2

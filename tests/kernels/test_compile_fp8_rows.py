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
KERNELS = ("_hopper_fp8_kernel", "_hopper_fp8_ahead_kernel")
WIDENS = "F2FP.F16.E4M3.UNPACK_B"


@cache
def compiled(kernel: str, heads: int) -> Any:
    constants = {**DECODE, "FP8": True, "HEADS": heads}
    return compile_for_hopper("mla_decode", kernel, FP8_KEYS, constants, 8)


def tool(name: str, option: str, kernel: str, heads: int) -> str:
    """What one of the CUDA tools that Triton brings says about the machine code."""
    import triton

    binary = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    with TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled(kernel, heads).asm["cubin"])
        done = subprocess.run([binary, option, cubin], check=True, capture_output=True, text=True)
    return done.stdout


def main_loop(kernel: str, heads: int) -> list[str]:
    """The instructions of the loop with the most wgmma, in their order, without predicates."""
    code: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for line in tool("nvdisasm", "-c", kernel, heads).splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        if found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@\S+ )?(.+?);", line):
            code.append(found[1])
            back = re.search(r"BRA.*`\((\.L_x_\d+)\)", found[1])
            if back and back[1] in labels:
                loops.append(code[labels[back[1]] :])
    return max(loops, key=lambda loop: sum("HGMMA" in step for step in loop))


@pytest.mark.parametrize("heads", [32, 16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_fits_without_a_spill(kernel: str, heads: int) -> None:
    """Red if a block takes more shared memory than Hopper has, or registers go to memory."""
    assert compiled(kernel, heads).metadata.shared <= SHARED
    usage = tool("cuobjdump", "-res-usage", kernel, heads)
    assert re.search(r"STACK:0 .*LOCAL:0 ", usage), usage


@pytest.mark.parametrize("heads", [32, 16])
@pytest.mark.parametrize("kernel", KERNELS)
def test_wgmma_is_waited_for_twice_a_block(kernel: str, heads: int) -> None:
    """Red if ptxas serialises: then 52 products of a block have a wait each."""
    loop = main_loop(kernel, heads)
    assert sum(step.startswith("HGMMA") for step in loop) == 52
    assert sum(step.startswith("WARPGROUP.DEPBAR") for step in loop) == 2


@pytest.mark.parametrize("heads", [32, 16])
def test_the_next_block_is_widened_while_scores_are_made(heads: int) -> None:
    """Red if anything waits for the scores before the last value is widened, or for the values'
    product before the first is."""
    loop = main_loop("_hopper_fp8_ahead_kernel", heads)
    last_product = max(i for i, step in enumerate(loop) if step.startswith("HGMMA"))
    widened = [i for i, step in enumerate(loop) if step.startswith(WIDENS)]
    waits = [i for i, step in enumerate(loop) if step.startswith("WARPGROUP.DEPBAR")]
    assert ["0x2" in loop[i] for i in waits] == [True, False]
    assert len(widened) == 64  # 64 keys of 512 values, 2 at a time in 256 threads
    assert last_product < widened[0] < waits[0] < widened[-1] < waits[1]

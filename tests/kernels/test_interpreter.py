from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.kernel_ops import OPS

HERE = Path(__file__).parent
FILES = {op: sorted(map(str, HERE.glob(f"test_{op}*.py"))) for op in OPS}


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="this is the inner run")
def test_the_triton_kernels_pass_the_kernel_tests_without_a_gpu() -> None:
    assert all(FILES.values()), f"an operation without tests: {FILES}"
    files = itertools.chain.from_iterable(FILES.values())
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *files],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped" not in run.stdout

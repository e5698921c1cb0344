"""What the child process compiles is what the server's own warm-up looks for."""

import os
import subprocess
import sys

import pytest

from longcat_kernels.background import BackgroundError
from longcat_kernels.warm_up_ahead import WarmUpAhead
from tests import ROOT
from tests.kernels.test_warm_up import TINY

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="nothing to compile")

WARM_UP = """
from longcat_kernels import dispatch
from longcat_kernels.compile_only import compile_only
from longcat_kernels.warm_up import warm_up
from tests.kernels.test_warm_up import TINY
dispatch.allow_pdl(False)
with compile_only(arch=90):
    print(warm_up("cpu", TINY))
"""


def test_the_warm_up_compiles_nothing_more(monkeypatch, tmp_path):
    """Red if the child loses an operation, sizes or the switch for early starts on its way."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    WarmUpAhead(TINY, pdl=False).join()
    before = sorted(tmp_path.rglob("*.cubin"))
    done = subprocess.run(
        [sys.executable, "-c", WARM_UP], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert int(done.stdout) == len(before) > 20
    assert sorted(tmp_path.rglob("*.cubin")) == before


def test_a_failure_says_why(monkeypatch, tmp_path):
    """Each operation that fails has a line. The cache's folder is a file here."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(BackgroundError, match=r"(?s)exit 1: .*FileExistsError"):
        WarmUpAhead(TINY, pdl=True).join()

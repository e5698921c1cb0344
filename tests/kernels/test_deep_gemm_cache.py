"""DeepGEMM's own library, in a child process without a GPU: which kernels it needs, and that it
compiles each once. One small kernel is compiled for real; the others by name, with the pretended
compiler."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat_kernels.background import BackgroundError
from longcat_kernels.deep_gemm_cache import HOPPER_SMS, Gemm, dense_gemms, lite_gemms
from longcat_kernels.deep_gemm_cache.compilers import CompilerError, build_stand_in, find_nvcc
from longcat_kernels.deep_gemm_cache.process import Compilation

SMALL = Gemm("dense", 256, 128, (1,))


@pytest.fixture(scope="module")
def nvcc() -> Path:
    try:
        return find_nvcc()
    except CompilerError as error:
        pytest.skip(str(error))


def without_gpu(folder: Path, code: str, *arguments: object, sms: int = HOPPER_SMS) -> None:
    """Runs Python with the stand-in for CUDA preloaded, with `folder` as its argument 1."""
    environment = {**os.environ, "LD_PRELOAD": str(build_stand_in(folder, sms))}
    command = [sys.executable, "-c", code, str(folder), *map(str, arguments)]
    subprocess.run(command, env=environment, check=True)


LIST = """
import pickle, sys
from pathlib import Path
from longcat_kernels.deep_gemm_cache import child
work = Path(sys.argv[1])
child.list_kernels(pickle.loads((work / "gemms").read_bytes()), work)
"""


def kernels(folder: Path, *gemms: Gemm, sms: int = HOPPER_SMS) -> set[str]:
    """The names that DeepGEMM gives the kernels of `gemms`."""
    folder.mkdir()
    (folder / "gemms").write_bytes(pickle.dumps(gemms))
    without_gpu(folder, LIST, sms=sms)
    return {path.parent.name for path in folder.rglob("kernel.cu")}


def test_one_gpu_needs_44_kernels(nvcc, tmp_path):
    """Red if a release of DeepGEMM chooses other tiles, or writes shapes into its sources: then the
    count is another one, and a start compiles longer."""
    assert len(kernels(tmp_path / "all", *lite_gemms(8192))) == 44


def test_one_number_of_rows_stands_for_a_tile(nvcc, tmp_path):
    """Red if the library's choice changes within 16 rows, so that kernels would be missed."""
    shapes = [(2112, 3072), (3072, 6144)]
    sampled = dense_gemms(shapes, 2048)
    every = tuple(gemm._replace(rows=range(1, 2049)) for gemm in sampled)
    assert kernels(tmp_path / "sampled", *sampled) == kernels(tmp_path / "every", *every)


def test_kernels_are_those_of_the_gpu_they_are_for(nvcc, tmp_path):
    """Red if the number of multiprocessors does not reach the library."""
    gemms = dense_gemms([(3072, 6144)], 512)
    assert not kernels(tmp_path / "h200", *gemms) & kernels(tmp_path / "h20", *gemms, sms=78)


def test_grouped_gemms_have_kernels_too(nvcc, tmp_path):
    """Scales of the masked layout are transposed by one more kernel."""
    masked = Gemm("masked", 256, 384, (1, 80), groups=8)
    contiguous = Gemm("contiguous", 256, 384, (1024,), groups=8)
    names = {name.partition(".")[0] for name in kernels(tmp_path / "grouped", masked, contiguous)}
    assert names == {
        "sm90_fp8_m_grouped_gemm_masked_1d2d",
        "sm90_m_grouped_fp8_gemm_contiguous_1d2d",
        "transpose_fp32",
    }


CALL = """
import os, sys
os.environ["DG_JIT_CACHE_DIR"] = sys.argv[2]
from longcat_kernels.deep_gemm_cache import Gemm
from longcat_kernels.deep_gemm_cache.calls import caller
caller(Gemm("dense", 256, 128, (1,)))(1)
"""


def test_each_kernel_is_compiled_once(nvcc, tmp_path):
    """Two servers that share a cache, then a process that meets the GEMM by itself: it must look
    for the same name. Red if the child's settings enter the name, or its lock does not hold."""
    cache = tmp_path / "cache"
    both = [Compilation([SMALL], HOPPER_SMS, cache, workers=1) for _ in range(2)]
    for compilation in both:
        compilation.join()
    assert sorted(compilation.compiled for compilation in both) == [0, 1]
    assert [compilation.total for compilation in both] == [1, 1]
    (cubin,) = cache.rglob("*.cubin")
    assert cubin.read_bytes().startswith(b"\x7fELF")
    assert cubin.stat().st_size > 10_000
    without_gpu(tmp_path, CALL, cache)
    assert list(cache.rglob("*.cubin")) == [cubin]


def test_a_failure_says_why(nvcc, tmp_path, monkeypatch):
    """A compiler that fails on kernels, and none at all."""
    script = tmp_path / "nvcc"
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--cubin*) echo no space left; exit 1;; esac\nexec {nvcc} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("DG_JIT_NVCC_COMPILER", str(script))
    with pytest.raises(BackgroundError, match=r"(?s)no space left.*1 of 1 kernels did not comp"):
        Compilation([SMALL], HOPPER_SMS, tmp_path / "cache").join()
    monkeypatch.setenv("DG_JIT_NVCC_COMPILER", "/nonexistent/nvcc")
    with pytest.raises(BackgroundError, match="no CUDA compiler there, expected nvcc of CUDA 12"):
        Compilation([SMALL], HOPPER_SMS, tmp_path / "cache").join()


@pytest.mark.gpu
def test_a_gpu_finds_the_kernels(nvcc, tmp_path):
    """The same call on the real device compiles nothing more."""
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    Compilation([SMALL], sms, tmp_path / "cache").join()
    before = sorted(tmp_path.rglob("*.cubin"))
    command = [sys.executable, "-c", CALL + "import torch\ntorch.cuda.synchronize()\n"]
    subprocess.run([*command, str(tmp_path), str(tmp_path / "cache")], check=True)
    assert sorted(tmp_path.rglob("*.cubin")) == before

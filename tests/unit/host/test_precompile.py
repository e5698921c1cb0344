"""Which GEMMs a server lets compile ahead, when it does so, and what it says.

The library itself runs in tests/kernels/test_deep_gemm_cache.py. No GPU is here, so a stand-in
takes the place of the child process.
"""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.arg_groups import overrides, resolution_hooks
from sglang.srt.environ import envs
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.server_args import ServerArgs
from torch import nn

from longcat_kernels.background import BackgroundError
from longcat_kernels.deep_gemm_cache import Gemm, default_folder, lite_gemms
from sglang_longcat.host import deep_gemm, hf_config, kernel_warm_up, precompile
from sglang_longcat.host.resolution import OwnVariable
from sglang_longcat.recipes.choose import published
from sglang_longcat.testing.tiny import write_tiny

MOE_CONFIG = SimpleNamespace(top_k=4, num_experts=8, num_local_experts=8)


def projection(n: int, k: int) -> nn.Module:
    layer = nn.Module()
    layer.weight = SimpleNamespace(shape=torch.Size((n, k)))
    layer.quant_method = object.__new__(deep_gemm.Fp8LinearMethod)
    return layer


def experts(backend: str) -> FusedMoE:
    layer = FusedMoE.__new__(FusedMoE)
    nn.Module.__init__(layer)
    layer.quant_method = object.__new__(deep_gemm.Fp8MoEMethod)
    layer.quant_method.block_quant = True
    layer.runner_backend = SimpleNamespace(is_deep_gemm=lambda: backend == "deep_gemm")
    layer.moe_runner_config = MOE_CONFIG
    layer.w13_weight = SimpleNamespace(shape=torch.Size((8, 512, 256)))
    layer.w2_weight = SimpleNamespace(shape=torch.Size((8, 256, 256)))
    return layer


@pytest.fixture(autouse=True)
def server(monkeypatch):
    """Chunks of 64 tokens on two data-parallel ranks, without speculation."""
    facts = SimpleNamespace(
        chunked_prefill_size=64, max_prefill_tokens=96, attn_dp_size=2, speculative_algorithm=None
    )
    for name in ("get_schedule", "get_parallel", "get_spec"):
        monkeypatch.setattr(deep_gemm, name, lambda: facts)
    monkeypatch.setattr(deep_gemm, "uses_deep_gemm", lambda layer: layer.weight.shape[0] != 100)
    monkeypatch.setattr(deep_gemm, "get_contiguous_layout_alignment", lambda rows, groups: 128)
    monkeypatch.setenv("SGLANG_MAX_KV_CHUNK_CAPACITY", "32")
    return facts


def gemms(*layers: nn.Module) -> tuple[Gemm, ...]:
    return deep_gemm.gemms(nn.ModuleList(layers), 256)


def test_projections_are_read_off_the_model(server):
    """Each shape once, those that DeepGEMM does not multiply never, with the draft's own."""
    one = projection(512, 256)
    built = one, projection(512, 256), projection(100, 256), nn.Linear(4, 4)
    rows = range(1, 2 * 64 + 1, 16)
    assert gemms(*built) == (Gemm("dense", 512, 256, rows),)
    server.speculative_algorithm = "NEXTN"
    assert [gemm[1:3] for gemm in gemms(*built)] == [(256, 512), (512, 256)]
    server.chunked_prefill_size = -1
    assert gemms(*built)[0].rows == range(1, 2 * 96 + 1, 16)


def test_a_cached_prefix_may_be_longer_than_a_chunk(monkeypatch):
    monkeypatch.setenv("SGLANG_MAX_KV_CHUNK_CAPACITY", "4096")
    assert gemms(projection(512, 256))[0].rows == range(1, 4097, 16)


def test_experts_only_where_deep_gemm_computes_them():
    assert gemms(experts("triton")) == ()
    masked, contiguous, *down = gemms(*(experts("deep_gemm") for _ in range(2)))
    assert masked == Gemm("masked", 512, 256, tuple(range(1, 65)), 8)  # 128 tokens x 4 / 8 experts
    assert (contiguous.kind, contiguous.groups, contiguous.alignment) == ("contiguous", 8, 128)
    assert contiguous.rows[0] == 4 * 128  # one token fills a tile of four experts
    assert contiguous.rows[-1] == 128 * (8 + (128 * 4 - 8) // 128)
    assert [(gemm.n, gemm.k) for gemm in down] == [(256, 256)] * 2


def test_the_published_model_has_these_shapes():
    """Red if the model's sizes change and `make kernels ARGS=--fp8` fills the cache for others."""
    shapes = {gemm[1:3] for gemm in lite_gemms(64)}
    assert shapes == {
        *((12288, 3072), (3072, 6144), (2112, 3072), (6144, 1536), (3072, 4096), (8192, 512))
    }


@pytest.mark.parametrize("variable", ["", "SGLANG_CACHE_DIR", "SGLANG_DG_CACHE_DIR"])
def test_make_kernels_fills_the_folder_that_a_server_reads(monkeypatch, tmp_path, variable):
    for name in ("SGLANG_CACHE_DIR", "SGLANG_DG_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    assert default_folder() == Path(envs.SGLANG_DG_CACHE_DIR.get())


@pytest.mark.parametrize(
    ("gpu", "switch", "users", "ours", "compiler", "expected"),
    [
        ((9, 0), None, None, True, "", False),
        ((9, 0), "off", None, True, "", True),
        ((9, 0), None, "1", True, "", True),
        ((10, 0), None, None, True, "", True),
        ((9, 0), None, None, False, "", True),
        ((9, 0), None, None, True, "SGLANG_DG_USE_NVRTC", True),
        ((9, 0), None, None, True, "SGLANG_IN_DEEPGEMM_PRECOMPILE_STAGE", True),
    ],
    ids=["default", "off", "by the user", "Blackwell", "another model", "NVRTC", "SGLang's tool"],
)
def test_sglangs_precompilation_is_left_out(
    monkeypatch, tmp_path, gpu, switch, users, ours, compiler, expected
):
    """On Hopper only, for our model only, not against the user, and not for the next engine."""
    monkeypatch.setattr("sglang.srt.utils.is_cpu", lambda: False)
    hf_config.register()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
    monkeypatch.setattr(hf_config, "is_served_by_us", lambda config: ours)
    set_or_delete(monkeypatch, "LONGCAT_PARALLEL_COMPILE", switch)
    set_or_delete(monkeypatch, "SGLANG_JIT_DEEPGEMM_PRECOMPILE", users)
    monkeypatch.setattr(precompile, "PRECOMPILE", OwnVariable("SGLANG_JIT_DEEPGEMM_PRECOMPILE"))
    if compiler:
        monkeypatch.setenv(compiler, "1")
    args = ServerArgs(model_path=str(write_tiny(tmp_path / "tiny")))
    overrides.declare_resolution(args, "test", device="cuda")
    called = []
    precompile.settle(args, called.append)
    assert called == [args]
    assert envs.SGLANG_JIT_DEEPGEMM_PRECOMPILE.get() is expected
    # Another engine in this process, of a model that is not ours.
    monkeypatch.setattr(hf_config, "is_served_by_us", lambda config: False)
    precompile.settle(args, called.append)
    assert envs.SGLANG_JIT_DEEPGEMM_PRECOMPILE.get()


def set_or_delete(monkeypatch, name, value):
    monkeypatch.setenv(name, value or "")  # so that the end of the test restores it
    if value is None:
        monkeypatch.delenv(name)


def test_registered_once():
    precompile.register()
    precompile.register()
    assert resolution_hooks._HOOKS[precompile.STEP].count(precompile.settle) == 1


class Child:
    """Stands in for a child process that compiles."""

    failure = ""

    def __init__(self, *given, **named):
        self.given = given

    def join(self):
        if self.failure:
            raise BackgroundError(self.failure)
        return 12.0


class DeepGemmChild(Child):
    compiled = 3


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(precompile, "_running", {})
    monkeypatch.setattr(precompile, "Compilation", DeepGemmChild)
    monkeypatch.setattr(precompile, "WarmUpAhead", Child)
    monkeypatch.setattr(precompile, "CudaModules", Child)
    monkeypatch.setattr("sglang.kernels.jit.utils.is_arch_support_pdl", lambda: True)
    monkeypatch.setattr("sglang.srt.utils.is_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    properties = SimpleNamespace(multi_processor_count=78)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    model_config = SimpleNamespace(dtype=torch.bfloat16)
    monkeypatch.setattr("sglang.srt.runtime_context.process_model_config", lambda: model_config)
    monkeypatch.setattr(kernel_warm_up, "server_sizes", lambda *given: given)
    monkeypatch.setenv("SGLANG_DG_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("LONGCAT_PARALLEL_COMPILE", raising=False)
    monkeypatch.setenv("LONGCAT_PDL", "0")


def start(*layers: nn.Module, weights: str = "block-fp8") -> None:
    precompile.start_cuda_modules(published(weights), shares_experts=False, drafts=True)
    precompile.start_deep_gemm(nn.ModuleList(layers), 256)
    precompile.start_triton("config", "rows")


def test_started_with_the_model_and_joined_once(gpu, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    start(projection(512, 256))
    modules, (gemms, sms, folder), triton = (child.given for child in precompile._running.values())
    assert [len(loaders) for loaders in modules] == [8, 2]
    assert (len(gemms), sms, folder) == (1, 78, tmp_path)
    assert triton == (("config", torch.bfloat16, "rows"), False)
    precompile.join()
    precompile.join()
    assert [record.getMessage() for record in caplog.records] == [
        "CUDA modules: compiled ahead in 12.0 s; the start waited 0.0 s",
        "DeepGEMM: compiled ahead in 12.0 s, 3 of them new; the start waited 0.0 s",
        "Triton kernels: compiled ahead in 12.0 s; the start waited 0.0 s",
    ]


@pytest.mark.parametrize(("capability", "switch"), [((10, 0), "1"), ((9, 0), "0")])
def test_off_on_other_gpus_and_by_the_switch(gpu, monkeypatch, capability, switch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setenv("LONGCAT_PARALLEL_COMPILE", switch)
    start(projection(512, 256))
    assert precompile._running == {}


def test_a_model_without_such_layers_compiles_the_rest(gpu):
    """A bf16 model, whose projections are not DeepGEMM's."""
    start(weights="bf16")
    assert list(precompile._running) == ["CUDA modules", "Triton kernels"]


def test_a_cpu_engine_beside_a_gpu_compiles_nothing(gpu, monkeypatch):
    monkeypatch.setattr("sglang.srt.utils.is_cpu", lambda: True)
    start(projection(512, 256))
    assert precompile._running == {}


def test_nvrtc_compiles_when_it_meets_a_kernel(gpu, monkeypatch):
    """Red if the child lists kernels by an nvcc that DeepGEMM does not call."""
    monkeypatch.setenv("SGLANG_DG_USE_NVRTC", "1")
    start(projection(512, 256))
    assert list(precompile._running) == ["CUDA modules", "Triton kernels"]


def test_a_failure_is_a_warning_and_the_start_goes_on(gpu, monkeypatch, caplog):
    monkeypatch.setattr(Child, "failure", "exit 1: no space left")
    start(projection(512, 256))
    precompile.join()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "DeepGEMM: not all compiled ahead (exit 1: no space left). The start" in caplog.text

"""Our default of mem_fraction_static, inside SGLang's resolution of server arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sglang.srt.arg_groups import memory_hook, overrides, parallel_hook, resolution_hooks
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.environ import envs
from sglang.srt.model_executor.cuda_graph_config import CudaGraphConfig, PhaseConfig
from sglang.srt.server_args import ServerArgs

from sglang_longcat import recipes
from sglang_longcat.host import hf_config, memory_share
from sglang_longcat.host.resolution import OwnVariable
from sglang_longcat.planning import reserve
from sglang_longcat.testing.engine_flags import nextn
from sglang_longcat.testing.tiny import write_tiny

CHUNK = "SGLANG_MAX_KV_CHUNK_CAPACITY"
RTX_4090, H100, H200, B200 = 24_564, 81_559, 143_771, 183_359  # MiB, as nvidia-smi shows them


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hf_config.register()
    return write_tiny(tmp_path_factory.mktemp("memory") / "tiny")


def settle(
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capacity: int,
    graphs: CudaGraphConfig | None = None,
    *,
    later: bool = False,
    **flags: Any,
) -> float:
    """What the step leaves, with SGLang's own step replaced by its result on an 80 GB GPU. later:
    another engine in the same process."""
    monkeypatch.setattr("sglang.srt.utils.get_device_memory_capacity", lambda device: capacity)
    if not later:
        monkeypatch.delenv(CHUNK, raising=False)
        monkeypatch.setattr(memory_share, "PREFIX_TOKENS", OwnVariable(CHUNK))
    flags = {"chunked_prefill_size": 8192, **flags}
    given = ServerArgs(model_path=str(checkpoint), **flags)
    parallel_hook.handle_deprecated_dp_attention(given)  # as SGLang does first of all
    graphs = graphs or CudaGraphConfig()
    overrides.declare_resolution(given, "test", device="cuda", cuda_graph_config=graphs)

    def upstream(args: ServerArgs) -> None:
        if resolving_view(args).mem_fraction_static is None:
            overrides.declare_resolution(args, "test", mem_fraction_static=0.822)

    memory_share.settle(given, upstream)
    fraction: float = resolving_view(given).mem_fraction_static
    return fraction


def test_an_80_gb_gpu_gets_room_for_100_000_tokens(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """69.7 GiB of weights, 78.5 GiB free at start; red if the reserve grows past what is left."""
    fraction = settle(checkpoint, monkeypatch, H100)
    left = 78.5 * fraction - 69.7
    assert left * 2**30 / 32_256 > 100_000
    assert 78.5 * (1 - fraction) > 4.2  # the H100 run used 2.9 GiB of 4.8
    assert envs.SGLANG_MAX_KV_CHUNK_CAPACITY.get() == 32768


def test_a_24_gb_gpu_gets_room_for_four_requests_of_4_bit_weights(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SGLang's rule, with the free memory in the log of an H200 that looked like an RTX 4090 and
    did not start: 23.30 GiB before loading and 3.24 after. Red if the reserve of small GPUs
    or the recipe's sizes grow, or if the server expands longer pieces than are reserved."""
    flags = recipes.find("24gb-tp1-int4").flags
    names = ("chunked_prefill_size", "max_running_requests")
    graphs = CudaGraphConfig(decode=PhaseConfig(max_bs=flags["cuda_graph_max_bs_decode"]))
    given = {name: flags[name] for name in names}
    fraction = settle(checkpoint, monkeypatch, RTX_4090, graphs, **given)
    left = 3.24 - 23.30 * (1 - fraction)
    assert left * 2**20 / 31.5 >= 4 * (4096 + 96)
    assert envs.SGLANG_MAX_KV_CHUNK_CAPACITY.get() == reserve.prefix_tokens(RTX_4090) == 4096


def test_a_users_fraction_is_not_touched(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(checkpoint, monkeypatch, H200, mem_fraction_static=0.7) == 0.7
    assert not envs.SGLANG_MAX_KV_CHUNK_CAPACITY.is_set()


def test_a_larger_choice_of_sglang_is_not_lowered(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settle(checkpoint, monkeypatch, capacity=24 * 1024) == 0.822


def test_other_models_are_not_touched(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_config, "is_served_by_us", lambda config: False)
    assert settle(checkpoint, monkeypatch, H200) == 0.822


def test_the_next_engine_decides_anew(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a small GPU's pieces stay for a large one, or ours for another model."""
    settle(checkpoint, monkeypatch, RTX_4090, max_running_requests=4)
    settle(checkpoint, monkeypatch, H100, later=True)
    assert envs.SGLANG_MAX_KV_CHUNK_CAPACITY.get() == reserve.prefix_tokens(H100)
    monkeypatch.setattr(hf_config, "is_served_by_us", lambda config: False)
    settle(checkpoint, monkeypatch, H100, later=True)
    assert not envs.SGLANG_MAX_KV_CHUNK_CAPACITY.is_set()


def test_a_users_pieces_are_not_touched(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_share, "PREFIX_TOKENS", OwnVariable(CHUNK))
    monkeypatch.setenv(CHUNK, "1000")
    settle(checkpoint, monkeypatch, H100, later=True)
    assert envs.SGLANG_MAX_KV_CHUNK_CAPACITY.get() == 1000


def test_registered_once() -> None:
    memory_share.register()
    memory_share.register()
    assert resolution_hooks._HOOKS[memory_share.STEP].count(memory_share.settle) == 1


def test_the_fused_all_reduce_has_its_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if it is left out: SGLang allocates it after the KV cache, twice 96 MiB a rank."""
    plain = settle(checkpoint, monkeypatch, H200, tp_size=8)
    fused = {"flashinfer_allreduce_fusion_backend": "trtllm"}
    assert (plain - settle(checkpoint, monkeypatch, H200, tp_size=8, **fused)) * H200 > 700
    one_gpu = settle(checkpoint, monkeypatch, H200)
    assert settle(checkpoint, monkeypatch, H200, **fused) == one_gpu


def test_a_verify_window_has_its_memory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if one row a request is counted: 400 windows of four tokens have 1,600 rows of logits,
    0.2 GiB in bf16 from the GEMM and 0.8 in fp32 for each of four copies. Red too if graphs of more
    requests than the server runs take memory: 48 if the user gives no number."""
    graphs = CudaGraphConfig(decode=PhaseConfig(max_bs=400))
    size = {"max_running_requests": 400, "graphs": graphs}
    plain = settle(checkpoint, monkeypatch, H200, **size)
    drafts = settle(checkpoint, monkeypatch, H200, **size, **nextn(3))
    logits = 1600 * 131_072 * (2 + 4 * 4) / 2**20
    assert logits < (plain - drafts) * H200 + 400 * 3.5 < 2 * logits
    wider = settle(checkpoint, monkeypatch, H200, **size, **nextn(5))
    assert (drafts - wider) * H200 > 800 * 131_072 * (2 + 4 * 4) / 2**20
    few = settle(checkpoint, monkeypatch, H200, graphs=graphs, **nextn(3))
    assert (few - drafts) * H200 == pytest.approx(400 * (11 - 3.5), rel=0.05)


def test_drafts_never_lower_the_reserve(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = CudaGraphConfig(decode=PhaseConfig(max_bs=256))
    plain = settle(checkpoint, monkeypatch, H200, graphs=graphs)
    assert settle(checkpoint, monkeypatch, H200, graphs=graphs, **nextn(3)) <= plain


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ((None, None, None), 1),
        (("NEXTN", None, None), 4),
        (("NEXTN", 4, 7), 8),  # SGLang takes steps + 1 for a chain
        (("STANDALONE", 6, None), 6),
        (("ngram", None, None), 12),
        (("NGRAM", 5, 3), 5),
    ],
)
def test_the_window_is_the_one_that_sglang_settles(given: tuple[Any, ...], tokens: int) -> None:
    assert reserve.window_tokens(*given) == tokens


def test_the_plans_default_is_the_servers_with_drafts(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if `estimate --draft` expects another reserve than a server with NEXTN keeps."""
    graphs = CudaGraphConfig(decode=PhaseConfig(max_bs=256))
    fraction = settle(checkpoint, monkeypatch, H200, graphs=graphs, **nextn(3))
    planned = reserve.default_runtime_reserve_mb(H200, 1, draft=True)
    assert (1 - fraction) * H200 == pytest.approx(planned, abs=0.001 * H200)


@pytest.mark.parametrize(
    "flags", [{"attn_dp_size": 2}, {"dp_size": 2, "enable_dp_attention": True}], ids=["new", "old"]
)
def test_data_parallel_attention_keeps_more_free(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any]
) -> None:
    """Red if `attention_dp` is left out of the reserve: two H200s then had 0.2 GiB left after one
    prompt each. With either spelling: SGLang rewrites the old one before it settles memory."""
    plain = settle(checkpoint, monkeypatch, H200, tp_size=2)
    replicas = settle(checkpoint, monkeypatch, H200, tp_size=2, **flags)
    assert (plain - replicas) * H200 > 1500


@pytest.mark.parametrize(
    ("capacity", "ranks"),
    [
        *((H100, 1), (H100, 4), (H200, 2), (H200, 8), (B200, 1)),
        *((16 * 1024, 1), (32607, 1), (32607, 4), (46068, 1), (46068, 4)),
    ],
)
def test_defaults_are_sglangs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capacity: int, ranks: int
) -> None:
    """Red if `estimate` and `doctor` expect another prefill or other graphs than a server has."""
    monkeypatch.setattr(memory_hook, "get_device_memory_capacity", lambda device: capacity)
    given = ServerArgs(model_path=str(checkpoint), tp_size=ranks)
    overrides.declare_resolution(given, "test", device="cuda", cuda_graph_config=CudaGraphConfig())
    memory_hook.handle_gpu_memory_settings(given)
    cfg = resolving_view(given)
    sglangs = cfg.chunked_prefill_size, cfg.cuda_graph_config.decode.max_bs
    assert sglangs == reserve.default_prefill_and_graph_rows(capacity, ranks)

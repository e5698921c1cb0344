"""Which engines get flashinfer's fused all-reduce, inside SGLang's resolution of its arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sglang.srt import runtime_context
from sglang.srt.arg_groups import overrides, resolution_hooks
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.server_args import ServerArgs

from sglang_longcat import allreduce_fusion, hf_config
from sglang_longcat.checkpoint.tiny import write_tiny


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hf_config.register()
    return write_tiny(tmp_path_factory.mktemp("fusion") / "tiny")


def settle(checkpoint: Path, device: str = "cuda", hopper: bool = True, **flags: Any) -> str | None:
    """The backend after the step, with SGLang's own step replaced by its doing nothing."""
    given = arguments(checkpoint, device, **flags)
    with runtime_context.override_platform(is_sm90=hopper, is_sm100=False):
        allreduce_fusion.settle(given, lambda args: None)
    found: str | None = resolving_view(given).flashinfer_allreduce_fusion_backend
    return found


def arguments(checkpoint: Path, device: str = "cuda", **flags: Any) -> ServerArgs:
    given = ServerArgs(model_path=str(checkpoint), **flags)
    overrides.declare_resolution(given, "test", device=device)
    # Imports what asks for the platform, before a test says that it is another.
    overrides.model_config_of(given)
    return given


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_multicast_free_kernel_by_default(checkpoint: Path, ranks: int) -> None:
    """Red if the default becomes "auto" or "mnnvl", which may create multicast objects."""
    assert settle(checkpoint, tp_size=ranks) == "trtllm"
    assert settle(checkpoint, tp_size=ranks, ep_size=ranks) == "trtllm"


@pytest.mark.parametrize(
    "flags",
    [
        {"tp_size": 1},
        {"tp_size": 3},
        {"tp_size": 2, "device": "cpu"},
        {"tp_size": 2, "attn_dp_size": 2},
        {"tp_size": 2, "nnodes": 2},
        {"tp_size": 2, "disable_custom_all_reduce": True},
        {"tp_size": 2, "enable_deterministic_inference": True},
        {"tp_size": 2, "enforce_disable_flashinfer_allreduce_fusion": True},
    ],
)
def test_off_where_it_does_not_apply(checkpoint: Path, flags: dict[str, Any]) -> None:
    assert settle(checkpoint, **flags) is None


def test_other_gpus_and_models(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settle(checkpoint, tp_size=2, hopper=False) is None
    monkeypatch.setattr(allreduce_fusion.hf_config, "is_served_by_us", lambda config: False)
    assert settle(checkpoint, tp_size=2) is None


def test_a_users_choice_stays(checkpoint: Path) -> None:
    chosen = settle(checkpoint, tp_size=2, flashinfer_allreduce_fusion_backend="mnnvl")
    assert chosen == "mnnvl"


def test_its_memory_is_left_free(checkpoint: Path) -> None:
    """SGLang allocates it behind the KV cache. TP2: 96 MiB for attention's ranks, and 96 for the
    experts'."""

    def asked(**flags: Any) -> float:
        view = resolving_view(arguments(checkpoint, **flags))
        with runtime_context.override_platform(is_sm90=True, is_sm100=False):
            return allreduce_fusion.workspace_mb(view)

    assert asked(tp_size=2) == 192
    assert asked(tp_size=8) == 768
    assert asked(tp_size=2, flashinfer_allreduce_fusion_backend="mnnvl") == 192
    assert asked(tp_size=1) == 0
    assert asked(tp_size=2, enforce_disable_flashinfer_allreduce_fusion=True) == 0


def test_registered_once() -> None:
    allreduce_fusion.register()
    allreduce_fusion.register()
    registered = resolution_hooks._HOOKS[allreduce_fusion.STEP]
    assert registered.count(allreduce_fusion.settle) == 1

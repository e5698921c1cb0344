"""Flags are refused inside SGLang's resolution of server arguments, for this model only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sglang.srt.arg_groups import resolution_hooks
from sglang.srt.server_args import ServerArgs

from sglang_longcat.host import hf_config, refuse_early
from sglang_longcat.host.refused_flags import UnsupportedFlag
from sglang_longcat.testing.tiny import TinyOptions, write_tiny

SMALL = TinyOptions(experts=4, zero_experts=2, topk=2, layers=1, mtp=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hf_config.register()
    return write_tiny(tmp_path_factory.mktemp("early") / "tiny", SMALL)


def test_this_model(checkpoint: Path) -> None:
    """Red if SGLang's step does not run, or if the refusal waits for the model's class."""
    steps: list[ServerArgs] = []
    given = ServerArgs(model_path=str(checkpoint), device="cpu", cpu_offload_gb=8)
    with pytest.raises(UnsupportedFlag, match="--cpu-offload-gb 8: "):
        refuse_early.refuse(given, steps.append)
    assert steps == [given]


@pytest.mark.parametrize(
    ("quant", "flags", "said"),
    [
        (None, {"quantization": "fp8"}, "--quantization fp8: the checkpoint's weights are unquan"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, {"cpu_offload_gb": 8}, "8 bits"),
    ],
)
def test_formats(
    checkpoint: Path, tmp_path: Path, quant: Any, flags: dict[str, Any], said: str
) -> None:
    """Red if a format that is not served, or a flag that contradicts it, reaches a scheduler."""
    config = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": quant}))
    given = ServerArgs(model_path=str(tmp_path), device="cpu", **flags)
    with pytest.raises(ValueError, match=said):
        refuse_early.refuse(given, lambda args: None)


def test_another_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refuse_early.hf_config, "is_served_by_us", lambda config: False)
    given = ServerArgs(model_path=str(checkpoint), device="cpu", cpu_offload_gb=8)
    refuse_early.refuse(given, lambda args: None)


def test_good_flags_read_no_config() -> None:
    """Red if the step reads config.json of a model that it has nothing to say about: SGLang keeps
    the first reading, and may still change what that depends on."""
    refuse_early.refuse(ServerArgs(model_path="no such directory"), lambda args: None)


def test_registered_once() -> None:
    refuse_early.register()
    refuse_early.register()
    assert resolution_hooks._HOOKS[refuse_early.STEP].count(refuse_early.refuse) == 1

"""The 17 tensors of the draft: every one is asked for by name and shape, and no other is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_longcat import env
from sglang_longcat.checkpoint.check import CheckpointError, check_draft
from sglang_longcat.checkpoint.layout import draft_tensors
from sglang_longcat.config import LongcatConfig
from sglang_longcat.speculation.draft_reader import DraftReader
from sglang_longcat.testing.tiny import TinyOptions, tiny_config, write_tiny

OPTIONS = TinyOptions(
    layers=1, hidden=192, heads=2, q_lora=64, kv_lora=32, nope=16, rope=8, v=16, ffn=64,
    expert_ffn=64, experts=4, zero_experts=2, topk=2, vocab=512,
)  # fmt: skip
SIZES = LongcatConfig.from_dict(tiny_config(OPTIONS))
NAMES = sorted(draft_tensors(SIZES))
WORD = "model.mtp.embed_tokens.weight"
EH_PROJ = "model.mtp.layers.0.eh_proj.weight"


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    path = write_tiny(tmp_path_factory.mktemp("draft") / "whole", OPTIONS)
    shards = [load_file(shard) for shard in path.glob("*.safetensors")]
    return {name: tensor for shard in shards for name, tensor in shard.items()}


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def load(
    path: Path, weights: dict[str, torch.Tensor] | None = None
) -> tuple[DraftReader, dict[str, torch.Tensor]]:
    """A reader and what it handed on; the embedding under its own name."""
    reader, loaded = DraftReader(SIZES, path), {}
    given = (weights or {}).items()
    loaded |= reader.feed(lambda rows: loaded.update({WORD: rows}), given)
    return reader, loaded


def test_there_are_seventeen() -> None:
    assert len(NAMES) == 17


def test_local_files_are_read_instead_of_the_stream(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Red if the 128 GB stream of the target is pulled for 1.1 GB, or a tensor is lost on the way.
    Norms of the latents carry the MLA factors, as the target's do."""

    def stream() -> None:
        raise AssertionError("the stream was read")
        yield

    reader, loaded = DraftReader(SIZES, write(tmp_path, tensors)), {}
    loaded |= reader.feed(lambda rows: loaded.update({WORD: rows}), stream())
    assert sorted(loaded) == NAMES
    for name in NAMES:
        scale = SIZES.q_scale if "q_a_layernorm" in name else 1.0
        scale = SIZES.kv_scale if "kv_a_layernorm" in name else scale
        assert torch.equal(loaded[name].float(), tensors[name].float() * scale), name


def test_an_update_comes_from_the_stream(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The files were another model's: their values must not come back. It may bring one tensor."""
    reader, _ = load(write(tmp_path, tensors))
    new = {EH_PROJ: torch.ones_like(tensors[EH_PROJ]), "lm_head.weight": torch.ones(1)}
    assert dict(reader.feed(lambda rows: None, new.items())).keys() == {EH_PROJ}


def test_a_shard_index_is_followed(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Only the shards with MTP tensors are opened: the other one is not even there."""
    own = {name: tensors[name] for name in NAMES}
    save_file(own, tmp_path / "b.safetensors")
    index = {name: "b.safetensors" if name in own else "a.safetensors" for name in tensors}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    check_draft(tmp_path, SIZES)
    assert sorted(load(tmp_path)[1]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_tensor_is_missed(tensors: dict[str, torch.Tensor], tmp_path: Path, name: str) -> None:
    """In local files by their headers, in a stream (a model name, not a path) at its end."""
    some = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(CheckpointError, match=rf"missing tensors \(1\):\s+{name}"):
        check_draft(write(tmp_path, some), SIZES)
    with pytest.raises(CheckpointError, match=f"1 tensors are missing.*\n  {name}"):
        load(Path("organisation/model"), some)


def test_wrong_shape(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    wrong = tensors | {EH_PROJ: torch.zeros(192, 192, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointError, match=rf"{EH_PROJ}: expected \[192, 384\] BF16"):
        check_draft(write(tmp_path, wrong), SIZES)
    with pytest.raises(CheckpointError, match=rf"{EH_PROJ} has shape \(192, 192\), expected"):
        load(Path("organisation/model"), wrong)


def test_no_draft_at_all(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    target = {name: tensor for name, tensor in tensors.items() if ".mtp." not in name}
    with pytest.raises(CheckpointError, match="--speculative-draft-model-path"):
        check_draft(write(tmp_path, target), SIZES)


@pytest.mark.parametrize(("value", "meant"), [("", "mtp"), ("MTP", "mtp"), ("word", "word")])
def test_choice_of_the_embedding(monkeypatch: pytest.MonkeyPatch, value: str, meant: str) -> None:
    monkeypatch.setenv("LONGCAT_DRAFT_EMBEDDING", value)
    assert env.draft_embedding() == meant


def test_unknown_choice_of_the_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGCAT_DRAFT_EMBEDDING", "ngram")
    with pytest.raises(ValueError, match="'ngram': expected one of mtp, word"):
        env.draft_embedding()

"""The LongCat-nano that ships is complete, small and readable, and its origin is stated."""

import json

import pytest

from sglang_longcat.assets import NANO, nano
from sglang_longcat.checkpoint.check import check_checkpoint
from sglang_longcat.checkpoint.generation import SAMPLING
from sglang_longcat.config import LongcatConfig
from sglang_longcat.doctor import checkpoint as doctor

FILES = {
    "README.md", "chat_template.jinja", "config.json", "data.json", "generation_config.json",
    "golden.json", "held_out.json", "loss.csv", "loss.png", "metrics.json", "model.safetensors",
    "model.safetensors.index.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip
FREE = {"PSF-2.0", "BSD-3-Clause", "MIT"}


def read(name):
    return json.loads((NANO / name).read_text())


def test_all_files_are_there():
    assert {file.name for file in NANO.iterdir()} - {"ablation.json"} == FILES
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in NANO.iterdir())


def test_it_is_small():
    assert (NANO / "model.safetensors").stat().st_size < 30e6
    assert sum(file.stat().st_size for file in NANO.iterdir()) < 31e6


def test_it_is_a_checkpoint_of_this_model():
    """Names, shapes and dtypes of the published layout; n = 4, k = 4, an MTP layer, YaRN."""
    config = LongcatConfig.from_dir(NANO)
    check_checkpoint(NANO, config)
    assert config.ngram is not None
    assert (config.ngram.n, config.ngram.tables) == (4, 12)
    assert config.zero_expert_num > 0
    assert read("config.json")["rope_scaling"]["type"] == "yarn"
    assert any(".mtp." in name for name in read("model.safetensors.index.json")["weight_map"])
    assert SAMPLING.items() <= read("generation_config.json").items()
    assert doctor.check(NANO)[0] is not None


def test_origin_and_recipe_are_recorded():
    data, metrics, card = read("data.json"), read("metrics.json"), (NANO / "README.md").read_text()
    assert {source["licence"] for source in data["sources"]} <= FREE
    assert set(metrics["held_out"]["loss"]) == {"main", "mtp1", "mtp2", "mtp3"}
    for stated in (metrics["device"], "training.nano train", "Held out", "MIT"):
        assert stated in card


def test_held_out_windows_exercise_the_eos_rule():
    config, windows = read("config.json"), read("held_out.json")["windows"]
    tokens = [token for window in windows for token in window]
    assert 0 <= min(tokens) <= max(tokens) < config["vocab_size"]
    assert len(tokens) > 9000
    assert tokens.count(config["eos_token_id"]) > 50


def test_missing_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sglang_longcat.assets.NANO", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"training\.nano"):
        nano()

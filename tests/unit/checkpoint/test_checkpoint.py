"""The layout table, the checkpoint check, and the small checkpoint with its tokenizer."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

from sglang_longcat.checkpoint.check import CheckpointError, check_checkpoint
from sglang_longcat.checkpoint.headers import INDEX_NAME, read_header
from sglang_longcat.checkpoint.layout import (
    MTP_PREFIX,
    as_stored,
    expected_tensors,
    is_quantised,
    tensor_dtype,
)
from sglang_longcat.config import LongcatConfig, QuantConfig
from sglang_longcat.testing.__main__ import main
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from sglang_longcat.testing.values import block_fp8
from tests.unit.test_config import LITE

SMALL: dict[str, Any] = {
    "layers": 1,
    "hidden": 192,
    "heads": 2,
    "q_lora": 64,
    "kv_lora": 64,
    "nope": 16,
    "rope": 8,
    "v": 16,
    "ffn": 160,
    "expert_ffn": 64,
    "experts": 4,
    "zero_experts": 2,
    "topk": 3,
    "vocab": 512,
    "ratio": 2,
}
FP8 = QuantConfig(method="fp8", block=(128, 128), ignored=())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("plain"), TinyOptions(**SMALL))


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("fp8"), TinyOptions(**SMALL, fp8=True))


@pytest.fixture(scope="module")
def tokenizer(plain: Path) -> PreTrainedTokenizerFast:
    # The model type is known to transformers only once the plugin registers it: give it a config.
    return AutoTokenizer.from_pretrained(plain, config=PreTrainedConfig())


# --- layout ---------------------------------------------------------------------------------------


def test_lite_layout_by_hand() -> None:
    shapes = expected_tensors(LongcatConfig.from_dict(LITE), mtp=True)
    by_hand = {
        "model.embed_tokens.weight": (131072, 3072),
        "lm_head.weight": (131072, 3072),
        "model.norm.weight": (3072,),
        "model.ngram_embeddings.embedders.0.weight": (10_223_617, 256),
        "model.ngram_embeddings.embedders.11.weight": (10_223_639, 256),
        "model.ngram_embeddings.post_projs.11.weight": (3072, 256),
        "model.layers.13.self_attn.1.q_a_proj.weight": (1536, 3072),
        "model.layers.13.self_attn.1.q_b_proj.weight": (6144, 1536),
        "model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight": (576, 3072),
        "model.layers.0.self_attn.0.kv_a_layernorm.weight": (512,),
        "model.layers.0.self_attn.0.kv_b_proj.weight": (8192, 512),
        "model.layers.0.self_attn.0.o_proj.weight": (3072, 4096),
        "model.layers.0.mlps.1.down_proj.weight": (3072, 6144),
        "model.layers.0.mlp.router.classifier.weight": (384, 3072),
        "model.layers.0.mlp.router.e_score_correction_bias": (384,),
        "model.layers.0.mlp.experts.255.gate_proj.weight": (1024, 3072),
        "model.mtp.layers.0.eh_proj.weight": (3072, 6144),
        "model.mtp.layers.0.transformer_layer.mlp.up_proj.weight": (6144, 3072),
    }
    assert {name: shapes.get(name) for name in by_hand} == by_hand
    assert "model.layers.14.mlps.0.up_proj.weight" not in shapes
    assert "model.layers.0.mlp.experts.256.up_proj.weight" not in shapes  # identity: no weights
    assert not [name for name in shapes if "embedders.12." in name]


def test_lite_size_is_that_of_the_model_card() -> None:
    shapes = expected_tensors(LongcatConfig.from_dict(LITE), mtp=False)
    parameters = sum(map(math.prod, shapes.values()))
    assert parameters == pytest.approx(68.5e9, rel=2e-3)
    wide = {"F32": 4, "BF16": 2}
    size = sum(math.prod(shape) * wide[tensor_dtype(n)] for n, shape in shapes.items())
    assert size == pytest.approx(137.2e9, rel=1e-3)


def test_mtp_head_has_the_published_17_tensors() -> None:
    config = LongcatConfig.from_dict(LITE)
    with_mtp, without = (expected_tensors(config, mtp=mtp) for mtp in (True, False))
    extra = with_mtp.keys() - without
    assert len(extra) == 17
    assert all(name.startswith(MTP_PREFIX) for name in extra)
    assert {f"model.mtp.layers.0.{norm}.m.weight" for norm in ("enorm", "hnorm")} <= extra
    assert "model.mtp.embed_tokens.weight" in extra
    assert "model.mtp.norm.weight" in extra


@pytest.mark.parametrize(
    ("name", "quantised"),
    [
        ("model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight", True),
        ("model.layers.0.self_attn.0.q_a_layernorm.weight", False),
        ("model.layers.0.mlps.0.gate_proj.weight", True),
        ("model.layers.0.mlp.experts.7.down_proj.weight", True),
        ("model.layers.0.mlp.router.classifier.weight", False),
        ("model.layers.0.mlp.router.e_score_correction_bias", False),
        ("model.ngram_embeddings.embedders.0.weight", False),
        ("model.ngram_embeddings.post_projs.0.weight", False),
        ("model.embed_tokens.weight", False),
        ("model.mtp.embed_tokens.weight", False),
        ("model.mtp.layers.0.eh_proj.weight", True),
        ("lm_head.weight", False),
    ],
)
def test_what_block_fp8_quantises(name: str, quantised: bool) -> None:
    assert is_quantised(name, FP8) is quantised
    assert not is_quantised(name, None)


def test_scale_shapes_round_up() -> None:
    name = "model.layers.0.self_attn.0.kv_a_proj_with_mqa.weight"
    assert as_stored({name: (576, 3072)}, FP8)[name + "_scale_inv"] == (5, 24)
    assert as_stored({name: (576, 3072)}, None) == {name: (576, 3072)}


# --- writing --------------------------------------------------------------------------------------


def test_same_seed_same_bytes_other_seed_other_values(tmp_path: Path, plain: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        again = write_tiny(tmp_path / "again", TinyOptions(**SMALL))
    finally:
        torch.set_num_threads(threads)
    names = sorted(file.name for file in plain.iterdir())
    assert names == sorted(file.name for file in again.iterdir())
    assert [n for n in names if (plain / n).read_bytes() != (again / n).read_bytes()] == []
    other = write_tiny(tmp_path / "other", TinyOptions(**SMALL, seed=1))
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) >= 2
    assert all((plain / n).read_bytes() != (other / n).read_bytes() for n in shards)


def test_default_sizes_suit_the_gpu_kernels() -> None:
    options = TinyOptions()
    head = (options.kv_lora, options.nope, options.rope, options.v)
    assert head == (512, 128, 64, 128)  # the only MLA shape that FA3 and FlashInfer accept
    assert options.hidden % 256 == 0
    assert options.expert_ffn % 256 == options.ffn % 256 == 0  # 128-blocks at TP2
    assert options.neighbors == options.splits == 4


def test_config_is_in_the_published_form(tmp_path: Path, plain: Path) -> None:
    raw = json.loads((plain / "config.json").read_text())
    assert raw["architectures"] == ["LongcatFlashNgramForCausalLM"]
    assert raw["model_type"] == "longcat_flash_ngram"
    assert not {"num_nextn_predict_layers", "num_hidden_layers", "auto_map"} & raw.keys()
    yarn = raw["rope_scaling"]
    window = yarn["factor"] * yarn["original_max_position_embeddings"]
    assert window == raw["max_position_embeddings"]
    variant = TinyOptions(**SMALL, rope_scaling=False, eos_list=True, mtp=False)
    path = write_tiny(tmp_path / "variant", variant)
    other = json.loads((path / "config.json").read_text())
    assert other["rope_scaling"] is None
    assert other["eos_token_id"] == [2]
    check_checkpoint(path, LongcatConfig.from_dir(path))  # no MTP tensor is a valid checkpoint


def test_values_exercise_the_model(plain: Path) -> None:
    tensors = load_all(plain)
    router = tensors["model.layers.0.mlp.router.classifier.weight"]
    bias = tensors["model.layers.0.mlp.router.e_score_correction_bias"]
    assert router.dtype == bias.dtype == torch.float32
    assert bias.abs().max() > 0
    word, draft = (tensors[f"model.{m}embed_tokens.weight"] for m in ("", "mtp."))
    assert not torch.equal(word, draft)
    rows = tensors["model.ngram_embeddings.embedders.0.weight"][:100].float()
    tables = rows @ tensors["model.ngram_embeddings.post_projs.0.weight"].float().T
    assert math.sqrt(12) * tables.std() > word.float().std()  # n-grams outweigh the word


def test_writer_refuses_a_used_directory(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (plain / "config.json").read_bytes()
    assert main(["tiny", str(plain)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert (plain / "config.json").read_bytes() == before


def test_command_line_passes_options(tmp_path: Path) -> None:
    flags = [part for key, v in SMALL.items() for part in (f"--{key.replace('_', '-')}", str(v))]
    assert main(["tiny", str(tmp_path / "t"), *flags, "--no-rope-scaling", "--seed", "3"]) == 0
    written = json.loads((tmp_path / "t" / "config.json").read_text())
    assert written["hidden_size"] == SMALL["hidden"]
    assert written["rope_scaling"] is None


def test_block_fp8_error_is_within_half_a_step() -> None:
    weight = torch.randn(200, 150, generator=torch.Generator().manual_seed(0))
    quantised, scale = block_fp8(weight, block=128)
    assert quantised.dtype == torch.float8_e4m3fn
    assert scale.shape == (2, 2)
    full = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:200, :150]
    # e4m3 has 3 mantissa bits: relative error up to 1/16, and a floor of half a subnormal step.
    bound = (weight.abs() / 16).maximum(full * 2**-10)
    assert ((quantised.float() * full - weight).abs() <= bound * 1.0001).all()


# --- checking -------------------------------------------------------------------------------------


def load_all(path: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in sorted(path.glob("*.safetensors")) for n, t in load_file(file).items()}


def shard_of(path: Path, name: str) -> Path:
    return path / json.loads((path / INDEX_NAME).read_text())["weight_map"][name]


def edit(path: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite the shard of `name`, without touching the index."""
    file = shard_of(path, name)
    tensors = {key: tensor.clone() for key, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def check(path: Path) -> None:
    check_checkpoint(path, LongcatConfig.from_dir(path))


@pytest.fixture
def broken(plain: Path, tmp_path: Path) -> Path:
    """A copy of the plain checkpoint to damage."""
    return Path(shutil.copytree(plain, tmp_path / "broken"))


@pytest.fixture
def broken_fp8(fp8: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fp8, tmp_path / "broken_fp8"))


def test_accepts_what_we_write(plain: Path, fp8: Path, tmp_path: Path) -> None:
    check(plain)
    check(fp8)
    single = tmp_path / "single"
    single.mkdir()
    shutil.copy(plain / "config.json", single)
    save_file(load_all(plain), single / "model.safetensors")
    check(single)


TABLE = "model.ngram_embeddings.embedders.5.weight"
EXPERT = "model.layers.0.mlp.experts.3.up_proj.weight"
NORM = "model.layers.0.input_layernorm.1.weight"


def test_wrong_table_row_count(broken: Path) -> None:
    edit(broken, TABLE, lambda tensors: tensors.update({TABLE: tensors[TABLE][:-1].clone()}))
    with pytest.raises(CheckpointError) as error:
        check(broken)
    assert f"misshaped tensors (1):\n    {TABLE}: expected [1035, 16] BF16" in str(error.value)
    assert "found [1034, 16] BF16" in str(error.value)


def test_missing_and_extra_tensor(broken: Path) -> None:
    extra = "model.layers.0.mlp.experts.4.up_proj.weight"
    edit(broken, EXPERT, lambda tensors: tensors.update({extra: tensors.pop(EXPERT)}))
    with pytest.raises(CheckpointError) as error:
        check(broken)
    assert f"missing tensors (1):\n    {EXPERT} [64, 192]" in str(error.value)
    assert f"unexpected tensors (1):\n    {extra} [64, 192] BF16" in str(error.value)


def test_part_of_an_mtp_head(broken: Path) -> None:
    name = "model.mtp.layers.0.enorm.m.weight"
    edit(broken, name, drop(name))
    with pytest.raises(CheckpointError, match=rf"missing tensors \(1\):\s+{name}"):
        check(broken)


def test_missing_shard_names_the_file_not_its_tensors(broken: Path) -> None:
    file = shard_of(broken, EXPERT)
    file.unlink()
    with pytest.raises(CheckpointError) as error:
        check(broken)
    assert f"missing shard files (1):\n    {file.name}" in str(error.value)
    assert "missing tensors" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 100, -1], ids=["empty", "length", "header", "data"])
def test_truncated_shard(broken: Path, keep: int) -> None:
    file = shard_of(broken, EXPERT)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"damaged shard files \(1\):\s+{file.name}"):
        check(broken)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[1, 2]",
        b'{"x": {"dtype": "BF16"}}',
        b'{"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 4]}}',
    ],
    ids=["text", "list", "no_shape", "wrong_length"],
)
def test_corrupt_header(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: corrupt header"):
        read_header(file)


def test_corrupt_index_and_empty_directory(broken: Path, tmp_path: Path) -> None:
    (broken / INDEX_NAME).write_text('{"weight_map": ')
    with pytest.raises(CheckpointError, match=r"index\.json is corrupt"):
        check(broken)
    config = LongcatConfig.from_dir(broken)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        check_checkpoint(tmp_path / "empty", config)


def test_long_lists_are_cut(broken: Path) -> None:
    def drop_all(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors)[1:]:
            del tensors[name]

    dropped = len(load_file(shard_of(broken, EXPERT))) - 1
    edit(broken, EXPERT, drop_all)
    with pytest.raises(CheckpointError) as error:
        check(broken)
    assert f"missing tensors ({dropped})" in str(error.value)
    assert f"... and {dropped - 20} more" in str(error.value)


def test_fp8_scale_without_its_weight_and_back(broken_fp8: Path) -> None:
    scale = EXPERT + "_scale_inv"
    edit(broken_fp8, scale, drop(scale))
    orphan = NORM + "_scale_inv"
    edit(broken_fp8, NORM, lambda tensors: tensors.update({orphan: torch.ones(1, 2)}))
    with pytest.raises(CheckpointError) as error:
        check(broken_fp8)
    assert f"missing tensors (1):\n    {scale} [1, 2]" in str(error.value)
    assert f"unexpected tensors (1):\n    {orphan} [1, 2] F32" in str(error.value)


def test_fp8_weight_left_in_bf16_is_refused_unless_ignored(broken_fp8: Path) -> None:
    scale = EXPERT + "_scale_inv"

    def unquantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EXPERT] = tensors[EXPERT].bfloat16()

    edit(broken_fp8, EXPERT, unquantise)
    edit(broken_fp8, scale, drop(scale))
    with pytest.raises(CheckpointError, match=r"expected \[64, 192\] F8_E4M3, found .* BF16"):
        check(broken_fp8)
    raw = json.loads((broken_fp8 / "config.json").read_text())
    raw["quantization_config"]["ignored_layers"].append("model.layers.0.mlp.experts.3.up_proj")
    check_checkpoint(broken_fp8, LongcatConfig.from_dict(raw))


def test_fp8_values_in_an_unquantised_checkpoint(broken: Path) -> None:
    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EXPERT] = tensors[EXPERT].to(torch.float8_e4m3fn)

    edit(broken, EXPERT, quantise)
    with pytest.raises(CheckpointError, match=rf"{EXPERT}: expected .* BF16, found .* F8_E4M3"):
        check(broken)


# --- tokenizer ------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_vocabulary_is_complete(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == SMALL["vocab"]
    named = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    assert named == ("<longcat_unk>", "<longcat_s>", "</longcat_s>", "<longcat_pad>")
    assert tokenizer.convert_tokens_to_ids(list(named)) == [0, 1, 2, 3]
    assert all(tokenizer.decode([token]) for token in range(SMALL["vocab"]))


def test_special_tokens_vanish_and_tags_stay(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<longcat_assistant>a<longcat_tool_call>f</longcat_tool_call></longcat_s>"
    ids = tokenizer.encode(text)
    assert len(ids) == 6  # every tag is one token
    kept = tokenizer.decode(ids, skip_special_tokens=True)
    assert kept == "a<longcat_tool_call>f</longcat_tool_call>"


def test_chat_over_several_turns(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<longcat_system>Be brief.<longcat_user>Hi<longcat_assistant>Hello!</longcat_s>"
        "<longcat_user>Bye<longcat_assistant>"
    )
    assert isinstance(text, str)
    assert tokenizer.encode(text).count(2) == 1


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def test_tool_call_and_responses(tokenizer: PreTrainedTokenizerFast) -> None:
    arguments = {"city": "Zürich", "days": 3, "units": ["C"]}
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "warm"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False)
    assert isinstance(text, str)
    declared, _, rest = text.partition("</longcat_tool_declare>")
    assert declared.startswith("<longcat_tool_declare>")
    assert "### Tool name: get_weather" in declared
    assert '"properties": {"city": {"type": "string"}}' in declared
    assert rest == (
        "<longcat_user>Weather?<longcat_assistant><longcat_tool_call>get_weather\n"
        "<longcat_arg_key>city</longcat_arg_key>\n<longcat_arg_value>Zürich</longcat_arg_value>\n"
        "<longcat_arg_key>days</longcat_arg_key>\n<longcat_arg_value>3</longcat_arg_value>\n"
        '<longcat_arg_key>units</longcat_arg_key>\n<longcat_arg_value>["C"]</longcat_arg_value>\n'
        "</longcat_tool_call>\n</longcat_s><longcat_user>"
        "<longcat_tool_response>sunny</longcat_tool_response>"
        "<longcat_tool_response>warm</longcat_tool_response>"
    )


def test_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="role judge is not"):
        tokenizer.apply_chat_template([{"role": "judge", "content": "x"}], tokenize=False)

"""4-bit weights: the test packers against the libraries' own unpacking, our reader against both."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file, save_file
from sglang.kernels.ops.quantization.awq_triton import awq_dequantize_decomposition
from sglang.srt.layers.quantization import marlin_utils
from sglang.srt.layers.quantization.utils import unpack_cols

from sglang_longcat.checkpoint import packing
from sglang_longcat.checkpoint.check import CheckpointError, check_checkpoint, check_draft
from sglang_longcat.checkpoint.packed_reader import PackedReader
from sglang_longcat.checkpoint.reader import CheckpointReader
from sglang_longcat.config import ConfigError, LongcatConfig
from sglang_longcat.quantisation import formats
from sglang_longcat.testing import packed as packers
from sglang_longcat.testing.packed import Scheme, quantization_config, write_packed
from sglang_longcat.testing.tiny import TinyOptions

OUT, IN = 48, 256
SCHEMES = [
    Scheme("auto-round"),
    Scheme("auto-round", 32, symmetric=False),
    Scheme("auto-round-awq", 64, symmetric=False),
    Scheme("auto-round-awq"),
    Scheme("gptq", 64),
    Scheme("awq", symmetric=False),
    Scheme("compressed-tensors", 32),
    Scheme("compressed-tensors", 64, symmetric=False),
]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)


def drawn(scheme: Scheme) -> packers.Quantised:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3))
    return packers.quantise("layer", weight, scheme)


def test_packers_against_compressed_tensors() -> None:
    """Red if our packer orders values as the library does not. It unpacks to -8 .. 7."""
    scheme = Scheme("compressed-tensors", symmetric=False)
    values, zeros, scales = drawn(scheme)
    parts = packers._compressed_tensors(values, zeros, scales)
    unpacked = unpack_from_int32(parts["weight_packed"], 4, torch.Size(values.shape))
    assert torch.equal(unpacked.int() + 8, values)
    points = unpack_from_int32(parts["weight_zero_point"], 4, torch.Size(zeros.shape), packed_dim=0)
    assert torch.equal(points.long() + 8, zeros.long())


def test_packers_against_sglang() -> None:
    """GPTQ and AWQ, by the functions with which SGLang reads them."""
    values, zeros, scales = drawn(Scheme("awq", symmetric=False))
    gptq = packers._gptq(values, zeros, scales)
    by_columns = unpack_cols(gptq["qzeros"], 4, *zeros.t().shape)
    assert torch.equal(by_columns.long() + 1, zeros.t().long())
    by_rows = unpack_cols(gptq["qweight"].t().contiguous(), 4, *values.shape)
    assert torch.equal(by_rows, values)
    awq = packers._awq(values, zeros, scales)
    expected = packers._dequantised(values, zeros, scales)
    read = awq_dequantize_decomposition(awq["qweight"], awq["scales"].float(), awq["qzeros"])
    torch.testing.assert_close(read.t(), expected)


@each_scheme
def test_reader(scheme: Scheme) -> None:
    """Red if a value, zero point or scale of any format is read as another one."""
    quantised = drawn(scheme)
    stored = formats.read(quantization_config(scheme))
    weight = packing.standard(packers._PACKERS[scheme.method](*quantised), stored)
    assert (weight.zeros is None) == scheme.symmetric
    expected = packers._dequantised(*quantised)
    assert torch.equal(packing.dequantise(weight, scheme.group_size), expected)


def test_zero_points_of_experts() -> None:
    """Red if SGLang turns an expert's zero points into others than a linear layer's: it takes them
    for AWQ's (schemes/compressed_tensors_wNa16_moe.py), whatever the checkpoint."""
    zeros = torch.randint(0, 16, (64, 4), generator=torch.Generator().manual_seed(0)).int()
    groups, outputs = zeros.shape[1], zeros.shape[0]
    of_experts = marlin_utils.moe_awq_to_marlin_zero_points(
        packing.pack_awq(zeros.t())[None], groups, outputs, 4
    )
    assert torch.equal(
        of_experts[0], marlin_utils.marlin_zero_points(zeros.t(), groups, outputs, 4)
    )
    of_linear = unpack_cols(packing.pack(zeros, 0).t(), 4, groups, outputs)
    assert torch.equal(of_linear, zeros.t())


def test_words_with_the_sign_bit() -> None:
    """Red if the highest value of a word is lost to the sign: 15 in the last place is negative."""
    values = torch.tensor([[15] * 8, [0] * 7 + [15]]).int()
    assert packing.pack(values, 1).flatten().tolist() == [-1, -(1 << 28)]
    assert torch.equal(packing.unpack(packing.pack(values, 1), 1), values)


def test_another_zero_point_than_symmetric() -> None:
    stored = formats.read(quantization_config(Scheme("gptq")))
    values, zeros, scales = drawn(Scheme("gptq"))
    zeros = zeros.clone()
    zeros[5, 0] = 7
    parts = packers._gptq(values, zeros, scales)
    with pytest.raises(CheckpointError, match=r"layer\.qzeros has zero points other than 8"):
        packing.check("layer.qzeros", parts["qzeros"], stored, values.shape)


def test_a_zero_point_of_16() -> None:
    """GPTQ's first version can say it; four bits cannot."""
    scheme = Scheme("auto-round", symmetric=False)
    values, zeros, scales = drawn(scheme)
    stored = formats.read(quantization_config(scheme))
    parts = packers._gptq(values, torch.full_like(zeros, 16), scales)
    with pytest.raises(CheckpointError, match="a zero point of 16"):
        packing.check("layer.qzeros", parts["qzeros"], stored, values.shape)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@each_scheme
def test_a_scale_that_is_no_number(scheme: Scheme, number: float) -> None:
    """Red if it is loaded: every token of every answer is then token 0. A scale of 0 is right, of a
    group of zeros."""
    values, zeros, scales = drawn(scheme)
    stored = formats.read(quantization_config(scheme))
    for wrong in (0.0, number):
        scales[3, 1] = wrong
        parts = packers._PACKERS[scheme.method](values, zeros, scales)
        [name] = parts.keys() & packing.SCALES
        with nullcontext() if wrong == 0 else pytest.raises(CheckpointError, match="has 1 scales"):
            packing.check(f"layer.{name}", parts[name], stored, values.shape)


# --- a whole checkpoint ---------------------------------------------------------------------------

SIZES = TinyOptions(layers=1, experts=4, zero_experts=2, topk=2, vocab=512)
MODULE = "model.layers.0.self_attn.1.q_b_proj"


def edited(path: Path, edit: dict[str, torch.Tensor | None]) -> Path:
    """`path` with tensors replaced, added or (None) removed. New ones go into the first file."""
    for number, file in enumerate(sorted(path.glob("*.safetensors"))):
        tensors = load_file(file)
        for name, tensor in edit.items():
            if tensor is None:
                tensors.pop(name, None)
            elif name in tensors or (number == 0 and "added" in name):
                tensors[name] = tensor
        save_file(tensors, file, metadata={"format": "pt"})
    return path


def defects(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        check_checkpoint(path, LongcatConfig.from_dir(path))
    return str(error.value)


@each_scheme
def test_complete(scheme: Scheme, tmp_path: Path) -> None:
    path = write_packed(tmp_path / "tiny", scheme, SIZES)
    check_checkpoint(path, LongcatConfig.from_dir(path))
    check_draft(path, LongcatConfig.from_dir(path))


@pytest.mark.parametrize(
    ("scheme", "part", "shape"),
    [
        (Scheme("auto-round"), "qzeros", [3, 192]),
        (Scheme("awq", symmetric=False), "qweight", [384, 192]),
        (Scheme("gptq"), "scales", [3, 1536]),
        (Scheme("compressed-tensors"), "weight_scale", [1536, 3]),
        (Scheme("compressed-tensors", symmetric=False), "weight_zero_point", [192, 3]),
        (Scheme("compressed-tensors"), "weight_shape", [2]),
    ],
    ids=str,
)
def test_missing_part(scheme: Scheme, part: str, shape: list[int], tmp_path: Path) -> None:
    """Red if a packed layer may lack one of its tensors, or if the message does not name it."""
    path = edited(write_packed(tmp_path / "tiny", scheme, SIZES), {f"{MODULE}.{part}": None})
    assert f"missing tensors (1):\n    {MODULE}.{part} {shape}" in defects(path)


def test_wrong_shape_and_type(tmp_path: Path) -> None:
    path = write_packed(tmp_path / "tiny", Scheme("gptq"), SIZES)
    name = f"{MODULE}.qweight"
    edited(path, {name: torch.zeros(49, 1536, dtype=torch.int32)})
    assert f"{name}: expected [48, 1536] I32, found [49, 1536] I32" in defects(path)
    edited(path, {name: torch.zeros(48, 1536)})
    assert f"{name}: expected [48, 1536] I32, found [48, 1536] F32" in defects(path)


def test_zero_points_of_a_symmetric_checkpoint(tmp_path: Path) -> None:
    path = write_packed(tmp_path / "tiny", Scheme("compressed-tensors"), SIZES)
    for file in path.glob("*.safetensors"):
        tensors = load_file(file)
        if f"{MODULE}.weight_scale" in tensors:
            tensors[f"{MODULE}.weight_zero_point"] = torch.zeros(192, 3, dtype=torch.int32)
            save_file(tensors, file, metadata={"format": "pt"})
    assert f"unexpected tensors (1):\n    {MODULE}.weight_zero_point" in defects(path)


def test_config_in_a_file_of_its_own(tmp_path: Path) -> None:
    """Red if a user of such a checkpoint is told to download it again."""
    path = write_packed(tmp_path / "tiny", Scheme("awq", symmetric=False), SIZES)
    file = path / "config.json"
    config = json.loads(file.read_text())
    (path / "quant_config.json").write_text(json.dumps(config.pop("quantization_config")))
    file.write_text(json.dumps(config))
    assert defects(path).endswith("put there what quantize_config.json or quant_config.json says.")


def test_names_without_their_prefix(tmp_path: Path) -> None:
    path = write_packed(tmp_path / "tiny", Scheme("awq", symmetric=False), SIZES)
    for file in path.glob("*.safetensors"):
        tensors = {name.removeprefix("model."): t for name, t in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    (path / "model.safetensors.index.json").unlink()
    assert "starts with 'model.'" in defects(path)


def test_half_a_fused_layer(tmp_path: Path) -> None:
    """Red if one of two joined projections may be quantised: SGLang has one layer for both."""
    for parts in (("up_proj",), ("q_a_proj",), ("experts.2",)):
        scheme = Scheme("awq", symmetric=False, left_out=parts)
        path = write_packed(tmp_path / parts[0], scheme, SIZES)
        with pytest.raises(ConfigError, match="Both are parts of one layer"):
            check_checkpoint(path, LongcatConfig.from_dir(path))


def reader(path: Path) -> PackedReader:
    from sglang_longcat.checkpoint.layout import expected_tensors

    config = LongcatConfig.from_dir(path)
    assert config.quant is not None
    return PackedReader(config.quant, expected_tensors(config, mtp=False))


def stored(path: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in path.glob("*.safetensors") for n, t in load_file(file).items()}


def test_layers_that_come_in_part(tmp_path: Path) -> None:
    """Red if a weight update with some tensors of a layer is served half."""
    path = write_packed(tmp_path / "tiny", Scheme("gptq"), SIZES)
    tensors = {n: t for n, t in stored(path).items() if n.startswith(MODULE)}
    del tensors[f"{MODULE}.scales"]
    with pytest.raises(CheckpointError, match=rf"of {MODULE} there are \['qweight', 'qzeros'\]"):
        list(reader(path).read(tensors.items()))


def test_an_update_of_repacked_weights(tmp_path: Path) -> None:
    """Red if new weights are written into parameters that a GPU's kernels have reordered."""
    path = write_packed(tmp_path / "tiny", Scheme("gptq"), SIZES)
    target = CheckpointReader(LongcatConfig.from_dir(path), path)
    target.convert_on(torch.device("cpu"), takes_updates=False)
    target.check_update_files(path)
    target.loaded_before = True
    with pytest.raises(CheckpointError, match="Start a server with the new weights"):
        target.check_update_files(path)
    with pytest.raises(CheckpointError, match="Start a server with the new weights"):
        list(target.checked([]))


def test_another_order_or_shape(tmp_path: Path) -> None:
    """Red if act-order or another shape gets past the reader, which would serve other weights."""
    path = write_packed(tmp_path / "gptq", Scheme("gptq"), SIZES)
    order = torch.arange(384).flip(0).int() // 128
    with pytest.raises(CheckpointError, match="reorders the inputs"):
        list(reader(path).read([(f"{MODULE}.g_idx", order)]))
    path = write_packed(tmp_path / "ct", Scheme("compressed-tensors"), SIZES)
    with pytest.raises(CheckpointError, match=r"says \[384, 1536\], expected \[1536, 384\]"):
        list(reader(path).read([(f"{MODULE}.weight_shape", torch.tensor([384, 1536]))]))


def test_kv_b_is_whole(tmp_path: Path) -> None:
    """Red if kv_b_proj is handed on packed: MLA absorbs it."""
    path = write_packed(tmp_path / "tiny", Scheme("auto-round"), SIZES)
    names = {name for name, _ in reader(path).read(stored(path).items())}
    whole = {name for name in names if "kv_b_proj" in name and "mtp" not in name}
    assert whole == {f"model.layers.0.self_attn.{half}.kv_b_proj.weight" for half in range(2)}

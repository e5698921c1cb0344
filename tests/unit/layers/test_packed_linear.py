"""Which calls of 4-bit layers take our kernel, decided on CPU tensors as if on a GPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsLinearMethod,
)
from sglang.srt.layers.quantization.compressed_tensors.schemes import CompressedTensorsWNA16

from longcat_kernels.packed_linear import Packed, reference, workloads
from sglang_longcat.layers import linear as dense
from sglang_longcat.layers import packed_linear as seam
from sglang_longcat.layers import step

ROWS, COLUMNS = 128, 256


class _OnGpu(torch.Tensor):
    """A CPU tensor that claims to be on a GPU."""

    is_cuda = True


def tokens(count: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(count, COLUMNS).to(dtype).as_subclass(_OnGpu)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Our kernel is faster for every shape, up to 4 tokens. Marlin says that it was called."""
    deterministic = SimpleNamespace(enable_deterministic_inference=False)
    monkeypatch.setattr(step, "get_exec", lambda: SimpleNamespace(deterministic=deterministic))
    monkeypatch.setattr(seam, "is_faster", lambda op, weight, n: n <= 4)
    monkeypatch.setattr(seam, "linear", reference.linear)
    monkeypatch.setattr(
        CompressedTensorsWNA16, "apply_weights", lambda self, layer, x, bias: "marlin"
    )
    return deterministic


def make_layer(**scheme: Any) -> LinearBase:
    """As SGLang leaves it after loading."""
    layer = LinearBase(COLUMNS, ROWS, params_dtype=torch.bfloat16)
    layer.scheme = CompressedTensorsWNA16(
        **{"strategy": "group", "num_bits": 4, "group_size": 128, **scheme}
    )
    layer.quant_method = CompressedTensorsLinearMethod("config")  # type: ignore[arg-type]
    words, scales = workloads.make_weight(ROWS, COLUMNS, seed=0, device="cpu")
    layer.weight_packed = torch.nn.Parameter(words, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scales, requires_grad=False)
    return layer


def test_a_few_tokens_take_the_kernel_and_more_marlin() -> None:
    layer = make_layer()
    before = list(layer.state_dict())
    dense.install_small_linear(layer)
    x = tokens(4)
    weight = Packed(layer.weight_packed, layer.weight_scale)
    assert torch.equal(layer.quant_method.apply(layer, x), reference.linear(x, weight))
    assert layer.quant_method.apply(layer, tokens(5)) == "marlin"
    assert layer.quant_method.apply(layer, x, torch.ones(ROWS)) == "marlin"
    assert list(layer.state_dict()) == before


@pytest.mark.parametrize(
    "scheme", [{"symmetric": False}, {"actorder": "group"}, {"num_bits": 8}, {"group_size": 256}]
)
def test_other_weights_keep_their_method(scheme: dict[str, Any]) -> None:
    """Red if the kernel gets weights whose numbers it does not know."""
    layer = make_layer(**scheme)
    dense.install_small_linear(layer)
    assert type(layer.quant_method) is CompressedTensorsLinearMethod


def test_deterministic_inference_keeps_marlin(settings: SimpleNamespace) -> None:
    settings.enable_deterministic_inference = True
    layer = make_layer()
    dense.install_small_linear(layer)
    assert type(layer.quant_method) is CompressedTensorsLinearMethod


def test_what_keeps_a_call_with_marlin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if one of the conditions is dropped: each alone turns the kernel off."""
    layer = make_layer()
    takes = seam.use_packed_linear
    assert not takes(layer, tokens(1))  # nobody asked for it
    dense.install_small_linear(layer)
    assert takes(layer, tokens(1))
    assert not takes(layer, tokens(1).as_subclass(torch.Tensor))
    assert not takes(layer, tokens(1, torch.float16))
    assert not takes(layer, tokens(4).unflatten(0, (2, 2)))
    assert not takes(layer, (tokens(1), tokens(1)))
    wrapped = torch.nn.Module()  # as LoRA does
    wrapped.base_layer, wrapped.quant_method = layer, layer.quant_method
    assert not takes(wrapped, tokens(1))
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "small_linear")
    assert not takes(layer, tokens(1))


@pytest.mark.parametrize(("count", "fused"), [(4, True), (5, False)])
def test_the_first_half_of_the_mlp_is_one_kernel_for_few_tokens(
    count: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_up, down = make_layer(), make_layer()
    dense.install_small_linear(gate_up, op="swiglu_linear")
    down.forward = lambda x: (x, None)
    mlp = dense.LongcatMLP.__new__(dense.LongcatMLP)
    torch.nn.Module.__init__(mlp)
    mlp.gate_up_proj, mlp.down_proj = gate_up, down
    monkeypatch.setattr(dense, "packed_swiglu_linear", reference.swiglu_linear)
    monkeypatch.setattr(dense.upstream.LongcatFlashMLP, "forward", lambda self, x: "sglang")
    x = tokens(count)
    got = mlp(x)
    wanted = reference.swiglu_linear(x, Packed(gate_up.weight_packed, gate_up.weight_scale))
    assert torch.equal(got, wanted) if fused else got == "sglang"

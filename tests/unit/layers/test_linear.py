"""Which calls take our kernels, decided on CPU tensors that say they are on a GPU."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization import unquant
from sglang.srt.layers.quantization.unquant import Bf16GemmBackend, UnquantizedLinearMethod

from longcat_kernels.fp8_layout import quantise, quantise_blocks
from longcat_kernels.small_linear import reference
from sglang_longcat.layers import fp8_inputs, step
from sglang_longcat.layers import linear as seam

ROWS, COLUMNS = 48, 32


class _OnGpu(torch.Tensor):
    """A CPU tensor that claims to be on a GPU."""

    is_cuda = True


def tokens(count: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(count, COLUMNS).to(dtype).as_subclass(_OnGpu)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """SGLang's for a Hopper GPU. Our kernel for bf16 inputs is faster for every shape, up to 8
    tokens; the one for pairs is never."""
    deterministic = SimpleNamespace(enable_deterministic_inference=False)
    monkeypatch.setattr(step, "get_exec", lambda: SimpleNamespace(deterministic=deterministic))
    monkeypatch.setattr(unquant, "_BF16_GEMM_BACKEND", Bf16GemmBackend.AUTO)
    monkeypatch.setattr(seam, "is_faster", lambda op, _, n: n <= 8 and not op.startswith("pair_"))
    return deterministic


@pytest.fixture
def layer() -> LinearBase:
    layer = LinearBase(COLUMNS, ROWS, params_dtype=torch.bfloat16)
    layer.quant_method.create_weights(layer, COLUMNS, [ROWS], COLUMNS, ROWS, torch.bfloat16)
    torch.nn.init.normal_(layer.weight)
    return layer


def test_a_few_tokens_take_the_kernel_and_more_the_library(
    layer: LinearBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = layer.state_dict()
    seam.install_small_linear(layer)
    calls = []
    monkeypatch.setattr(seam, "linear", lambda x, w: calls.append(len(x)) or reference.linear(x, w))
    for count in (1, 8, 9):
        x = tokens(count)
        wanted = UnquantizedLinearMethod().apply(layer, x)
        torch.testing.assert_close(layer.quant_method.apply(layer, x), wanted)
    assert calls == [1, 8]
    assert list(layer.state_dict()) == list(before)  # checkpoints load as before


def test_what_keeps_a_call_with_sglang(layer: LinearBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if one of the conditions is dropped: each alone turns the kernel off."""
    takes = seam.use_small_linear
    assert not takes(layer, tokens(1))  # nobody asked for it
    seam.install_small_linear(layer)
    assert takes(layer, tokens(1))
    assert not takes(layer, tokens(1).as_subclass(torch.Tensor))
    assert not takes(layer, tokens(1, torch.float16))
    assert not takes(layer, tokens(4).unflatten(0, (2, 2)))
    wrapped = torch.nn.Module()  # as LoRA does
    wrapped.base_layer, wrapped.quant_method, wrapped.weight = (
        layer,
        layer.quant_method,
        layer.weight,
    )
    assert not takes(wrapped, tokens(1))
    monkeypatch.setattr(unquant, "_BF16_GEMM_BACKEND", Bf16GemmBackend.TORCH)
    assert not takes(layer, tokens(1))


def test_a_bias_is_the_librarys(layer: LinearBase, monkeypatch: pytest.MonkeyPatch) -> None:
    seam.install_small_linear(layer)
    monkeypatch.setattr(seam, "linear", None)
    bias = torch.ones(ROWS, dtype=torch.bfloat16)
    got = layer.quant_method.apply(layer, tokens(1), bias)
    assert got.shape == (1, ROWS)


def test_quantised_layers_and_deterministic_inference_keep_their_method(
    layer: LinearBase, settings: SimpleNamespace
) -> None:
    settings.enable_deterministic_inference = True
    method = layer.quant_method
    seam.install_small_linear(layer)
    assert layer.quant_method is method
    settings.enable_deterministic_inference = False

    class Quantised(UnquantizedLinearMethod):
        pass

    layer.quant_method = quantised = Quantised()
    seam.install_small_linear(layer)
    assert layer.quant_method is quantised


@pytest.mark.parametrize(("count", "fused"), [(1, True), (9, False)])
def test_the_mlp_gives_the_same_either_way(
    count: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first half is fused for a few tokens; down_proj is called in either case."""
    gate_up = LinearBase(COLUMNS, ROWS, params_dtype=torch.bfloat16)
    gate_up.quant_method.create_weights(gate_up, COLUMNS, [ROWS], COLUMNS, ROWS, torch.bfloat16)
    torch.nn.init.normal_(gate_up.weight, std=COLUMNS**-0.5)
    gate_up.forward = lambda x: (x @ gate_up.weight.t(), None)
    seam.install_small_linear(gate_up, op="swiglu_linear")
    mlp = seam.LongcatMLP.__new__(seam.LongcatMLP)
    torch.nn.Module.__init__(mlp)
    mlp.gate_up_proj = gate_up
    mlp.act_fn = lambda y: torch.nn.functional.silu(y[:, : ROWS // 2]) * y[:, ROWS // 2 :]
    mlp.down_proj = lambda x: (x, None)
    calls = []

    def swiglu(x: torch.Tensor, weight: torch.Tensor, scales: None) -> torch.Tensor:
        calls.append(len(x))
        return reference.swiglu_linear(x, weight, scales)

    monkeypatch.setattr(seam, "swiglu_linear", swiglu)
    x = tokens(count)
    wanted = reference.swiglu_linear(x.as_subclass(torch.Tensor), gate_up.weight)
    got = mlp(x).as_subclass(torch.Tensor)
    torch.testing.assert_close(got, wanted, rtol=3 * 2**-7, atol=2**-9)
    assert bool(calls) == fused


def test_the_first_projection_asks_the_table_first(monkeypatch):
    """Red if one token's first projection goes past our kernel, or other steps past SGLang's; FP8
    inputs are a pair."""
    from sglang.srt.models.deepseek_v2 import DeepseekV2AttentionMLA

    from sglang_longcat.layers import attention

    layer = attention.LongcatAttention.__new__(attention.LongcatAttention)
    torch.nn.Module.__init__(layer)
    projection = SimpleNamespace(weight=2 * torch.eye(4).bfloat16(), quant_method=None)
    layer.fused_qkv_a_proj_with_mqa = projection
    takes = lambda layer, x: isinstance(x, torch.Tensor) and len(x) == 1  # noqa: E731
    monkeypatch.setattr(attention, "use_small_linear", takes)
    monkeypatch.setattr(DeepseekV2AttentionMLA, "prepare_qkv_latent", lambda *_: "sglang")
    x = torch.ones(2, 4).bfloat16()
    assert torch.equal(layer.prepare_qkv_latent(x[:1], None), 2 * x[:1])
    assert layer.prepare_qkv_latent(x, None) == "sglang"
    assert layer.prepare_qkv_latent((x[:1], x[:1]), None) == "sglang"


@pytest.fixture
def fp8_layer(monkeypatch: pytest.MonkeyPatch) -> LinearBase:
    """A layer as SGLang makes it for block FP8 on Hopper, with our method."""
    monkeypatch.setattr(fp8_inputs, "uses_deep_gemm", lambda layer: True)
    monkeypatch.setattr(
        fp8_inputs.Fp8PairMethod,
        "__init__",
        lambda self, config: self.__dict__.update(quant_config=config),
    )
    layer = LinearBase(256, 128, params_dtype=torch.bfloat16)
    method = object.__new__(fp8_inputs.Fp8LinearMethod)
    method.quant_config = "config"
    layer.quant_method = method
    weight, scales = quantise_blocks(torch.randn(128, 256))
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    layer.weight_scale_inv = torch.nn.Parameter(scales, requires_grad=False)
    seam.install_small_linear(layer)
    return layer


def test_block_fp8_layers_take_the_kernel_for_few_tokens(
    fp8_layer: LinearBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if few tokens are quantised for the kernel that does not need it, if the scales are lost,
    or if more tokens miss the pair."""
    given: list[object] = []
    monkeypatch.setattr(
        fp8_inputs.Fp8LinearMethod, "apply", lambda self, layer, x, bias: given.append(x)
    )
    few, many = (torch.randn(n, 256).bfloat16().as_subclass(_OnGpu) for n in (8, 9))
    assert not seam.reads_pair(fp8_layer, few)
    assert seam.reads_pair(fp8_layer, many)
    monkeypatch.setattr(seam, "linear", lambda *arguments: arguments)
    got = fp8_layer.quant_method.apply(fp8_layer, few)
    wanted = few, *seam.weight_of(fp8_layer)
    assert [a is b for a, b in zip(got, wanted)] == [True] * 3
    assert wanted[2] is fp8_layer.weight_scale_inv
    pair = (many, many)
    for x in (many, pair):
        fp8_layer.quant_method.apply(fp8_layer, x)
    assert [x is wanted for x, wanted in zip(given, (many, pair))] == [True, True]


def test_block_fp8_layers_take_the_kernel_for_pairs_where_the_table_has_one(
    fp8_layer: LinearBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if the producer is not told to quantise, if a pair that came is quantised again, if an
    activation without one reaches the kernel as bf16, or if it takes the other kernel's tokens."""
    monkeypatch.setattr(seam, "is_faster", lambda op, _, n: n == (4 if op == "pair_linear" else 2))
    monkeypatch.setattr(seam, "pair_linear", lambda pair, *weight: (pair, *weight))
    monkeypatch.setattr(seam, "quantise", lambda x: ("quantised", x))
    x = torch.randn(4, 256).bfloat16().as_subclass(_OnGpu)
    two = torch.randn(2, 256).bfloat16().as_subclass(_OnGpu)
    assert seam.reads_pair(fp8_layer, x)
    assert not seam.reads_pair(fp8_layer, two)
    assert not seam.use_pair_linear(fp8_layer, x.half().as_subclass(_OnGpu))  # it would return bf16
    apply = fp8_layer.quant_method.apply
    pair = (x, x)
    assert apply(fp8_layer, pair)[0] is pair
    assert apply(fp8_layer, x)[0] == ("quantised", x)
    setattr(x, fp8_inputs._PAIR, pair)
    got = apply(fp8_layer, x)
    assert got[0] is pair
    assert got[1:] == (fp8_layer.weight, fp8_layer.weight_scale_inv)


@pytest.mark.parametrize(
    ("faster", "wanted"),
    [
        ({"pair_swiglu"}, "pair_swiglu"),
        (set(), "swiglu_quantise"),
        ({"linear"}, "sglang"),  # down takes bf16: nothing quantises for it
        ({"pair_swiglu", "linear"}, "pair_swiglu_bf16"),
        ({"swiglu_linear"}, "swiglu_linear"),
    ],
)
def test_the_first_half_of_the_mlp_gives_what_down_takes(
    fp8_layer: LinearBase, monkeypatch: pytest.MonkeyPatch, faster: set[str], wanted: str
) -> None:
    monkeypatch.setattr(seam, "is_faster", lambda op, _, n: op in faster)
    for name in ("pair_swiglu", "pair_swiglu_bf16", "swiglu_linear"):
        monkeypatch.setattr(seam, name, lambda *_, name=name: name)
    monkeypatch.setattr(seam, "swiglu_quantise", lambda *_: "swiglu_quantise")
    monkeypatch.setattr(seam, "quantise", lambda x: (x, x))
    monkeypatch.setattr(seam, "use_fused_quantisation", lambda op, x: True)
    monkeypatch.setattr(seam.upstream.LongcatFlashMLP, "forward", lambda self, x: "sglang")
    down = copy.copy(fp8_layer)
    down.forward = lambda x: (x, None)
    fp8_layer.forward = lambda x: (x, None)
    fp8_layer.quant_method = seam.SmallFp8Method("config", "swiglu_linear")
    mlp = seam.LongcatMLP.__new__(seam.LongcatMLP)
    torch.nn.Module.__init__(mlp)
    mlp.gate_up_proj, mlp.down_proj = fp8_layer, down
    assert mlp(torch.randn(4, 256).bfloat16().as_subclass(_OnGpu)) == wanted


def test_an_mlp_whose_halves_take_other_inputs_computes_what_its_weights_say(
    fp8_layer: LinearBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window of four tokens: the first half reads a pair, the second bf16. Red if scales of a
    weight or of the inputs are lost in between."""
    monkeypatch.setattr(seam, "is_faster", lambda op, _, n: op in ("pair_swiglu", "linear"))
    monkeypatch.setattr(seam, "quantise", lambda x: quantise(x.as_subclass(torch.Tensor)))
    plain = lambda x, *weight: reference.linear(x.as_subclass(torch.Tensor), *weight)  # noqa: E731
    monkeypatch.setattr(seam, "linear", plain)
    gate_up, down = copy.copy(fp8_layer), copy.copy(fp8_layer)
    for layer, rows, columns in ((gate_up, 256, 256), (down, 256, 128)):
        weight, scales = quantise_blocks(torch.randn(rows, columns) / columns**0.5)
        layer._parameters = {}  # the copies share one
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer.weight_scale_inv = torch.nn.Parameter(scales, requires_grad=False)
    gate_up.quant_method = seam.SmallFp8Method("config", "swiglu_linear")
    down.forward = lambda x: (down.quant_method.apply(down, x.as_subclass(_OnGpu)), None)
    mlp = seam.LongcatMLP.__new__(seam.LongcatMLP)
    torch.nn.Module.__init__(mlp)
    mlp.gate_up_proj, mlp.down_proj = gate_up, down
    x = torch.randn(4, 256).bfloat16()
    pair = quantise(x)
    half = reference.pair_swiglu_bf16(pair, *seam.weight_of(gate_up))
    wanted = reference.linear(half, *seam.weight_of(down))
    got = mlp(x.as_subclass(_OnGpu))
    assert torch.equal(got, wanted)
    exact = torch.nn.functional.silu(x.float() @ widen(gate_up)[:128].t())
    exact = (exact * (x.float() @ widen(gate_up)[128:].t())) @ widen(down).t()
    assert float((got - exact).norm() / exact.norm()) < 0.06  # e4m3 rounds by up to 2^-4


def widen(layer: LinearBase) -> torch.Tensor:
    return reference.widen(layer.weight, layer.weight_scale_inv)

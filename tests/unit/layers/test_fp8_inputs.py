"""Which layers and calls take quantised activations, and what the libraries' kernels make of them.

Decisions are made on CPU objects that say they are on a Hopper GPU; whole engines with pairs are
tests/model/test_fp8_pairs.py's. The `gpu` tests hold the fused kernels to the separate ones that
SGLang launches otherwise, red if a new version of a library rounds elsewhere.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.kernels import fp8_producers
from longcat_kernels.fp8_layout import GROUP, Pair, quantise, scale_rows, scales_of, widen
from longcat_kernels.lite import EPS, FFN, HIDDEN
from sglang_longcat.layers import fp8_inputs, step

TOKENS = [1, 2, 3, 4, 127, 128, 129, 1000]


class _OnGpu(torch.Tensor):
    """A CPU tensor that claims to be on a GPU."""

    is_cuda = True


def tokens(count: int = 3, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.ones(count, 256, dtype=dtype).as_subclass(_OnGpu)


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """SGLang's for a Hopper GPU."""
    deterministic = SimpleNamespace(enable_deterministic_inference=False)
    monkeypatch.setattr(step, "get_exec", lambda: SimpleNamespace(deterministic=deterministic))
    monkeypatch.setattr(fp8_inputs, "get_platform", lambda: SimpleNamespace(is_sm90=True))
    monkeypatch.setattr(
        fp8_inputs.Fp8PairMethod,
        "__init__",
        lambda self, config: self.__dict__.update(config=config),
    )
    return deterministic


def layer(**changed: Any) -> Any:
    """One as SGLang makes it for 128 x 128 blocks on Hopper, or with changes to its method."""
    method = object.__new__(fp8_inputs.Fp8LinearMethod)
    facts = {
        "quant_config": "config",
        "w8a8_block_fp8_linear": fp8_inputs.deepgemm_w8a8_block_fp8_linear_with_fallback,
        "weight_block_size": [128, 128],
        "use_marlin": False,
        "use_mxfp8": False,
        "block_fp8_as_mxfp8": False,
    }
    shape = changed.pop("shape", (2112, 3072))
    method.__dict__.update(facts | changed)
    module = torch.nn.Module()
    module.weight = SimpleNamespace(shape=shape)  # type: ignore[assignment]
    module.quant_method = method  # type: ignore[assignment]
    return module


def accepted(module: Any) -> bool:
    fp8_inputs.install_pair_method(module)
    return fp8_inputs.accepts_pair(module)


def test_layers_that_deep_gemm_multiplies(
    settings: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Red if a layer is given a pair that its GEMM cannot read, or would scale otherwise."""
    assert accepted(layer())
    for change in (
        {"w8a8_block_fp8_linear": lambda: None},
        {"weight_block_size": [32, 32]},
        {"use_marlin": True},
        {"use_mxfp8": True},
        {"block_fp8_as_mxfp8": True},
        {"shape": (2100, 3072)},
        {"shape": (2112, 3000)},
    ):
        assert not accepted(layer(**change)), change
    unquantised = torch.nn.Linear(2, 2)
    fp8_inputs.install_pair_method(unquantised, None)
    assert not fp8_inputs.accepts_pair(unquantised)
    settings.enable_deterministic_inference = True
    assert not accepted(layer())
    settings.enable_deterministic_inference = False
    monkeypatch.setattr(fp8_inputs, "get_platform", lambda: SimpleNamespace(is_sm90=False))
    assert not accepted(layer())


def experts(**changed: Any) -> Any:
    facts: dict[str, Any] = {
        "block_quant": True, "use_mxfp8": False, "block": [128, 128], "triton": True, "scale": None,
        "kind": fp8_inputs.Fp8MoEMethod, "on_input": False,
    }  # fmt: skip
    facts |= changed
    method = object.__new__(facts["kind"])
    method.block_quant, method.use_mxfp8 = facts["block_quant"], facts["use_mxfp8"]
    method.quant_config = SimpleNamespace(weight_block_size=facts["block"])
    moe = object.__new__(fp8_inputs.FusedMoE)
    torch.nn.Module.__init__(moe)
    moe.quant_method, moe.w13_input_scale = method, facts["scale"]
    moe.runner_backend = SimpleNamespace(is_triton=lambda: facts["triton"])
    moe.moe_runner_config = SimpleNamespace(apply_router_weight_on_input=facts["on_input"])
    return moe


def test_experts_that_take_a_pair(settings: SimpleNamespace) -> None:
    """Red if a runner gets a pair that it refuses, or ignores: then a norm quantises in vain."""
    assert fp8_inputs.accepts_pair(experts())

    class Other(fp8_inputs.Fp8MoEMethod):
        pass

    for change in (
        {"block_quant": False},
        {"use_mxfp8": True},
        {"block": [32, 32]},
        {"triton": False},
        {"scale": torch.ones(1)},
        {"kind": Other},
        {"on_input": True},
    ):
        assert not fp8_inputs.accepts_pair(experts(**change)), change
    settings.enable_deterministic_inference = True
    assert not fp8_inputs.accepts_pair(experts())


def test_calls_that_quantise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fp8_inputs.use_fused_quantisation("fp8_norm", tokens())
    assert not fp8_inputs.use_fused_quantisation("fp8_norm", tokens(0))
    assert not fp8_inputs.use_fused_quantisation("fp8_norm", tokens().as_subclass(torch.Tensor))
    assert not fp8_inputs.use_fused_quantisation("fp8_norm", tokens(dtype=torch.float16))
    assert not fp8_inputs.use_fused_quantisation("fp8_norm", tokens()[:, ::2])
    assert not fp8_inputs.use_fused_quantisation("fp8_norm", tokens()[None])
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "fp8_norm")
    assert not fp8_inputs.use_fused_quantisation("fp8_norm", tokens())
    assert fp8_inputs.use_fused_quantisation("fp8_swiglu", tokens())


def norm_of(*consumers: Any, width: int = 256) -> fp8_inputs.Fp8Norm:
    norm = fp8_inputs.Fp8Norm(width, eps=EPS)
    norm.feed(*(lambda x, layer=layer: fp8_inputs.accepts_pair(layer) for layer in consumers))
    return norm


def test_a_norm_quantises_for_a_layer_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the norm quantises for nobody, without a residual (which flashinfer's has to have),
    or for widths that flashinfer's kernel refuses; or if the pair is lost on the way out."""
    taker = layer()
    fp8_inputs.install_pair_method(taker)
    calls: list[int] = []

    def quantise(x: torch.Tensor, residual: torch.Tensor, *_: Any) -> Any:
        calls.append(len(x))
        return x.clone(), ("q", "scales")

    monkeypatch.setattr(fp8_inputs, "add_norm_quantise", quantise)
    monkeypatch.setattr(fp8_inputs.RMSNorm, "forward", lambda self, x, *rest, **_: (x, *rest))
    x, residual = tokens(), tokens()
    normed, same = norm_of(layer(), taker)(x, residual, None)
    assert (fp8_inputs.pair_of(normed), same is residual, calls) == (("q", "scales"), True, [3])
    for result in (
        norm_of(layer())(x, residual),
        norm_of(taker, width=384)(x, residual),
        norm_of(taker)(x),
        norm_of(taker)(x, residual, x),
        norm_of(taker)(tokens(0), tokens(0)),
    ):
        assert fp8_inputs.pair_of(result[0]) is None
    assert calls == [3]


def test_a_layer_takes_the_pair_and_else_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        fp8_inputs.Fp8LinearMethod, "apply", lambda self, layer, x, bias: given.append(x) or x
    )
    plain, carrier, pair = tokens(), tokens(), (tokens(), tokens())
    setattr(carrier, fp8_inputs._PAIR, pair)
    method = fp8_inputs.Fp8PairMethod("config")
    for x in (plain, carrier, pair):
        method.apply(None, x)
    assert [x is wanted for x, wanted in zip(given, (plain, pair, pair))] == [True] * 3
    assert fp8_inputs.pair_of(carrier[:2]) is None  # other rows: another tensor


def test_the_references() -> None:
    """A pair is its activation within fp8's rounding, and lies as DeepGEMM's TMA reads it."""
    for count in (0, 1, 5, 8):
        inputs = fp8_producers.make_inputs(count, seed=count, device="cpu", hidden=256, ffn=128)
        normed, _ = fp8_producers.add_norm(inputs.x, inputs.residual, inputs.weight, EPS)
        for x in (normed, fp8_producers.swiglu(inputs.gate_up)):
            q, scales = pair = quantise(x)
            gap = (widen(pair) - x.float()).abs()
            smallest = scales.repeat_interleave(GROUP, dim=1) * 2.0**-10
            assert (gap <= 2.0**-4 * x.float().abs() + smallest).all()
            largest = q.float().unflatten(1, (-1, GROUP)).abs().amax(2)
            assert count == 0 or (largest == 448).all()
            assert count == 0 or scales.stride() == (1, -(-count // 4) * 4)


def separately(x: torch.Tensor) -> Pair:
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8

    pair: Pair = sglang_per_token_group_quant_fp8(
        x, GROUP, column_major_scales=True, scale_tma_aligned=True
    )
    return pair


def assert_same_pair(got: Pair, wanted: Pair) -> None:
    """The libraries divide in their own ways: a scale may differ in its last bits, and an element
    that lay between two of fp8's numbers."""
    assert got[1].shape == wanted[1].shape
    assert got[1].stride() == wanted[1].stride()
    same = (got[0].view(torch.uint8) == wanted[0].view(torch.uint8)).float().mean()
    assert same > 0.999
    torch.testing.assert_close(got[1], wanted[1], rtol=2.0**-21, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("count", TOKENS)
def test_norm_and_quantisation_as_two_launches_make_them(count: int) -> None:
    from sgl_kernel import fused_add_rmsnorm

    inputs = fp8_producers.make_inputs(count, seed=count, device="cuda")
    x, residual = inputs.x.clone(), inputs.residual.clone()
    normed, pair = fp8_inputs.add_norm_quantise(inputs.x, inputs.residual, inputs.weight, EPS)
    fused_add_rmsnorm(x, residual, inputs.weight, EPS)
    assert torch.equal(inputs.residual, residual)
    ulp = 2.0**-7 * x.float().abs()
    gap = (normed.float() - x.float()).abs()
    assert (gap <= ulp).all()  # sums of squares in another order
    assert (gap == 0).float().mean() > 0.99
    assert_same_pair(pair, separately(normed))


@pytest.mark.gpu
@pytest.mark.parametrize("count", TOKENS)
@pytest.mark.parametrize("ffn", [FFN, FFN // 2], ids=["tp1", "tp2"])
def test_swiglu_and_quantisation_as_two_launches_make_them(count: int, ffn: int) -> None:
    from sglang.srt.layers.activation import silu_and_mul  # the one of two that it runs here

    gate_up = fp8_producers.make_inputs(count, seed=count, device="cuda", ffn=ffn).gate_up
    assert_same_pair(fp8_inputs.swiglu_quantise(gate_up), separately(silu_and_mul(gate_up)))


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 30, 129])
def test_deep_gemm_reads_the_pairs(count: int) -> None:
    """Red if scales lie otherwise than the GEMM expects them: the same product as from SGLang's own
    quantisation of the same activation."""
    inputs = fp8_producers.make_inputs(count, seed=1, device="cuda")
    normed, pair = fp8_inputs.add_norm_quantise(inputs.x, inputs.residual, inputs.weight, EPS)
    weight = torch.randn(2112, HIDDEN, device="cuda").to(torch.float8_e4m3fn)
    scale = torch.rand(17, HIDDEN // 128, device="cuda") + 0.5

    def product(x: torch.Tensor, input_scale: torch.Tensor | None) -> torch.Tensor:
        output: torch.Tensor = fp8_inputs.deepgemm_w8a8_block_fp8_linear_with_fallback(
            x, weight, [128, 128], scale, input_scale
        )
        return output.float()

    ours, theirs = product(*pair), product(normed, None)
    assert (ours - theirs).abs().max() <= 2.0**-6 * theirs.abs().max()
    exact = (
        widen(pair)
        @ (weight.float() * scale.repeat_interleave(128, 0)[:2112].repeat_interleave(128, 1)).T
    )
    assert (ours - exact).abs().max() <= 2.0**-6 * exact.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [1, 30, 128])
def test_captured_calls_follow_their_inputs(count: int) -> None:
    static = fp8_producers.make_inputs(count, seed=0, device="cuda")

    def both() -> tuple[Pair, Pair]:
        _, pair = fp8_inputs.add_norm_quantise(static.x, static.residual, static.weight, EPS)
        return pair, fp8_inputs.swiglu_quantise(static.gate_up)

    both()  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pairs = both()
    for seed in range(1, 4):
        fresh = fp8_producers.make_inputs(count, seed=seed, device="cuda")
        for buffer, value in zip(static, fresh):
            buffer.copy_(value)
        graph.replay()
        normed, _ = fp8_producers.add_norm(fresh.x, fresh.residual, fresh.weight, EPS)
        for got, x in zip(pairs, (normed, fp8_producers.swiglu(fresh.gate_up))):
            gap = (widen(got) - x.float()).abs()
            bound = 2.0**-3 * x.float().abs()  # the norm's last bit, then fp8's rounding
            assert (gap <= bound + got[1].repeat_interleave(GROUP, 1) * 2.0**-9).all()


def test_scales_of_no_whole_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="100 columns: expected a multiple of 128"):
        scale_rows(3, 100, "cpu")
    assert scales_of(scale_rows(3, 256, "cpu"), 3).shape == (3, 2)

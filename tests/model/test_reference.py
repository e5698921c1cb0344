"""The oracle against transformers' LongcatFlashForCausalLM, and its loader against hand-made files.

Owns: parity of layers, router, attention, embedding and MTP layer with independent code; FP8; what
a broken checkpoint says. Weights are random and large enough for every part to move the logits.
The n-gram ids have their own unit test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM
from transformers.models.longcat_flash import modeling_longcat_flash as hf_modules

from sglang_longcat.config import ConfigError
from sglang_longcat.reference import CheckpointError, ReferenceModel, Semantics
from sglang_longcat.reference.load import dequantize_block_fp8
from sglang_longcat.reference.moe import Router

Weights = dict[str, Tensor]
HIDDEN, VOCAB, LAYERS, HEADS, ROUTED, ZERO = 48, 64, 2, 4, 6, 4
EOS, HF_EPS = 2, 1e-6  # transformers leaves the two latent norms at its default eps
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 4,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_layers": LAYERS,
    "num_attention_heads": HEADS,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 16,
    "v_head_dim": 12,
    "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": 20,
    "n_routed_experts": ROUTED,
    "zero_expert_num": ZERO,
    "moe_topk": 3,
    "routed_scaling_factor": 6.0,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "eos_token_id": EOS,
}
NGRAM = {"ngram_vocab_size_ratio": 3, "emb_neighbor_num": 3, "emb_split_num": 2}
MODULI = [3 * VOCAB + 2 * i + 1 for i in range(4)]
# EOS inside, repeats, and one token twice in a row around the EOS.
PROMPT = [5, 9, 9, 33, EOS, 33, 7, EOS, EOS, 1, 63, 0, *range(3, 60)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def attention_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.q_a_proj.weight": (24, HIDDEN),
        f"{prefix}.q_a_layernorm.weight": (24,),
        f"{prefix}.q_b_proj.weight": (HEADS * 24, 24),
        f"{prefix}.kv_a_proj_with_mqa.weight": (32, HIDDEN),
        f"{prefix}.kv_a_layernorm.weight": (16,),
        f"{prefix}.kv_b_proj.weight": (HEADS * 20, 16),
        f"{prefix}.o_proj.weight": (HIDDEN, HEADS * 12),
    }


def mlp_shapes(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes = {f"{prefix}.{name}_proj.weight": (width, HIDDEN) for name in ("gate", "up")}
    return {**shapes, f"{prefix}.down_proj.weight": (HIDDEN, width)}


def layer_shapes(prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}.mlp.router.classifier.weight": (ROUTED + ZERO, HIDDEN),
        f"{prefix}.mlp.router.e_score_correction_bias": (ROUTED + ZERO,),
    }
    for i in (0, 1):
        shapes |= attention_shapes(f"{prefix}.self_attn.{i}")
        shapes |= mlp_shapes(f"{prefix}.mlps.{i}", 40)
        shapes[f"{prefix}.input_layernorm.{i}.weight"] = (HIDDEN,)
        shapes[f"{prefix}.post_attention_layernorm.{i}.weight"] = (HIDDEN,)
    for e in range(ROUTED):
        shapes |= mlp_shapes(f"{prefix}.mlp.experts.{e}", 20)
    return shapes


def mtp_shapes() -> dict[str, tuple[int, ...]]:
    layer = "model.mtp.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "model.mtp.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.mtp.norm.weight": (HIDDEN,),
        f"{layer}.eh_proj.weight": (HIDDEN, 2 * HIDDEN),
    }
    for name in ("enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm"):
        shapes[f"{layer}.{name}.weight"] = (HIDDEN,)
    shapes |= attention_shapes(f"{layer}.self_attn")
    return shapes | mlp_shapes(f"{layer}.transformer_layer.mlp", 40)


def random_weights(*, ngram: bool = False, mtp: bool = False) -> Weights:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= layer_shapes(f"model.layers.{layer}")
    for i, rows in enumerate(MODULI if ngram else []):
        shapes[f"model.ngram_embeddings.embedders.{i}.weight"] = (rows, HIDDEN // 4)
        shapes[f"model.ngram_embeddings.post_projs.{i}.weight"] = (HIDDEN, HIDDEN // 4)
    shapes |= mtp_shapes() if mtp else {}
    generator = torch.Generator().manual_seed(0)
    return {name: _random(name, shape, generator) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("e_score_correction_bias"):
        return values * 0.05
    if len(shape) == 1:
        return 1 + values * 0.2
    return values if "embed" in name else values / shape[-1] ** 0.5


def write(path: Path, weights: Weights, *, shards: int = 1, **config: Any) -> Path:
    """A checkpoint directory: one file, or several with an index."""
    zero = {"zero_expert_type": "identity"}
    (path / "config.json").write_text(json.dumps({**SIZES, **zero, **config}))
    names = list(weights)
    files = [f"model-{i}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({name: weights[name].clone() for name in names[i::shards]}, path / file)
    if shards > 1:
        index = {name: files[i % shards] for i, name in enumerate(names)}
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def hf_config(**config: Any) -> LongcatFlashConfig:
    # transformers derives the rope frequencies from head_dim, which defaults to 64.
    return LongcatFlashConfig(**(SIZES | config), head_dim=SIZES["qk_rope_head_dim"])


def hf_model(weights: Weights, **config: Any) -> LongcatFlashForCausalLM:
    """transformers' model with the same weights; its expert tensors are stacked and fused."""
    model = LongcatFlashForCausalLM(hf_config(**config)).eval()
    mine = {
        k: v for k, v in weights.items() if not any(s in k for s in ("ngram", ".mtp.", ".experts."))
    }
    for layer in range(LAYERS):
        below = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([weights[f"{below}.{e}.{name}_proj.weight"] for e in range(ROUTED)])
            for name in ("gate", "up", "down")
        )
        # transformers keeps unused rows for identity experts; NaN shows if they were used.
        unused = torch.full((ZERO, 2 * gate.shape[1], HIDDEN), torch.nan)
        mine[f"{below}.gate_up_proj"] = torch.cat((torch.cat((gate, up), dim=1), unused))
        mine[f"{below}.down_proj"] = down
    model.load_state_dict(mine, strict=True)
    return model


def hf_logits(model: LongcatFlashForCausalLM, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model(**{name: value[None] for name, value in inputs.items()}).logits[0]


@pytest.mark.parametrize(
    "rope",
    [None, YARN, YARN | {"mscale": 0.5, "mscale_all_dim": 1.3}],
    ids=["plain", "yarn", "yarn-mscale"],
)
def test_logits_equal_transformers(tmp_path: Path, rope: dict[str, Any] | None) -> None:
    weights = random_weights()
    scaling: dict[str, Any] = {"rope_scaling": rope} if rope else {}
    path = write(tmp_path, weights, **scaling)
    expected = hf_logits(hf_model(weights, **scaling), input_ids=torch.tensor(PROMPT))

    model = ReferenceModel.from_checkpoint(path, latent_norm_eps=HF_EPS)
    torch.testing.assert_close(model(PROMPT), expected, atol=1e-4, rtol=0)
    unscaled = ReferenceModel.from_checkpoint(
        path, latent_norm_eps=HF_EPS, semantics=Semantics(identity_scaled=False)
    )
    assert (unscaled(PROMPT) - expected).abs().max() > 0.1


def test_the_parity_prompt_reaches_every_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards the parity test: were an expert or the bias idle there, it would prove less."""
    model = ReferenceModel.from_checkpoint(write(tmp_path, random_weights()))
    calls: list[tuple[Router, Tensor]] = []
    route = Router.__call__
    monkeypatch.setattr(
        Router, "__call__", lambda self, x: calls.append((self, x)) or route(self, x)
    )
    model(PROMPT)
    assert len(calls) == LAYERS
    for router, x in calls:
        chosen = route(router, x)[0].sort(dim=1).values
        assert chosen.unique().tolist() == list(range(ROUTED + ZERO))
        router.bias = torch.zeros(ROUTED + ZERO)
        assert (chosen != route(router, x)[0].sort(dim=1).values).any(dim=1).float().mean() > 0.1


def slow_embedding(weights: Weights, tokens: list[int]) -> Tensor:
    """Token by token, table by table."""
    rows = []
    for t, token in enumerate(tokens):
        row = weights["model.embed_tokens.weight"][token].double()
        for i, modulus in enumerate(MODULI):
            total = token
            for p in range(1, 2 + i // 2):
                if t < p or tokens[t - p] == EOS:
                    break
                total += tokens[t - p] * VOCAB**p
            table = weights[f"model.ngram_embeddings.embedders.{i}.weight"]
            projection = weights[f"model.ngram_embeddings.post_projs.{i}.weight"]
            row = row + projection.double() @ table[total % modulus].double()
        rows.append(row / 5)
    return torch.stack(rows).float()


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """The whole model, n-gram tables, MTP and YaRN, in three shards."""
    weights = random_weights(ngram=True, mtp=True)
    path = write(tmp_path_factory.mktemp("full"), weights, shards=3, rope_scaling=YARN, **NGRAM)
    return path, weights


def test_ngram_model_equals_transformers_on_its_embeddings(full: tuple[Path, Weights]) -> None:
    path, weights = full
    embeddings = slow_embedding(weights, PROMPT)
    expected = hf_logits(hf_model(weights, rope_scaling=YARN), inputs_embeds=embeddings)
    model = ReferenceModel.from_checkpoint(path, latent_norm_eps=HF_EPS)
    torch.testing.assert_close(model.embedding(torch.tensor(PROMPT)), embeddings)
    torch.testing.assert_close(model(PROMPT), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", ["identity_scaled", "eos_cuts_lookback", "word_row_divided"])
def test_breaking_a_rule_shows_in_the_logprobs(full: tuple[Path, Weights], rule: str) -> None:
    right = ReferenceModel.from_checkpoint(full[0]).logprobs(PROMPT)
    wrong = ReferenceModel.from_checkpoint(full[0], semantics=Semantics(**{rule: False}))
    difference = (wrong.logprobs(PROMPT) - right).abs()
    assert difference.max() > 0.05
    if rule == "eos_cuts_lookback":  # nothing may change before the first EOS has a successor
        assert difference[: PROMPT.index(EOS)].max() < 1e-5


def test_latent_norms_follow_rms_norm_eps_when_serving(tmp_path: Path) -> None:
    path = write(tmp_path, random_weights(), rms_norm_eps=0.1)
    default = ReferenceModel.from_checkpoint(path)(PROMPT)
    explicit = ReferenceModel.from_checkpoint(path, latent_norm_eps=0.1)(PROMPT)
    other = ReferenceModel.from_checkpoint(path, latent_norm_eps=HF_EPS)(PROMPT)
    assert torch.equal(default, explicit)
    assert (default - other).abs().max() > 1e-2


def test_logprobs_and_greedy_agree_with_transformers(tmp_path: Path) -> None:
    """Every id is an EOS here: greedy decoding must not stop at one."""
    weights = random_weights()
    path = write(tmp_path, weights, eos_token_id=list(range(VOCAB)))
    model = ReferenceModel.from_checkpoint(path, latent_norm_eps=HF_EPS)
    prompt = PROMPT[:6]
    tokens = torch.tensor(prompt + model.greedy(prompt, 8))
    assert len(tokens) == 14
    expected = hf_logits(hf_model(weights), input_ids=tokens)
    assert tokens[6:].tolist() == expected[5:-1].argmax(dim=-1).tolist()
    table = expected.log_softmax(dim=-1)
    entries = torch.stack([table[t, tokens[t + 1]] for t in range(13)])
    torch.testing.assert_close(model.logprobs(tokens), entries, atol=1e-4, rtol=0)


def hf_dense_layer(weights: Weights, x: Tensor) -> Tensor:
    """The MTP layer put together from transformers' modules, then model.mtp.norm."""
    config = hf_config(rope_scaling=YARN)
    config._attn_implementation = "eager"

    def loaded(module: torch.nn.Module, below: str) -> torch.nn.Module:
        start = f"model.mtp.{below}."
        state = {n.removeprefix(start): w for n, w in weights.items() if n.startswith(start)}
        module.load_state_dict(state, strict=True)
        return module

    def norm(below: str) -> torch.nn.Module:
        return loaded(hf_modules.LongcatFlashRMSNorm(HIDDEN, eps=1e-5), below)

    attention = loaded(hf_modules.LongcatFlashMLA(config, 0), "layers.0.self_attn")
    mlp = loaded(hf_modules.LongcatFlashMLP(config), "layers.0.transformer_layer.mlp")
    positions = hf_modules.LongcatFlashRotaryEmbedding(config)(x, torch.arange(len(x))[None])
    mask = torch.full((1, 1, len(x), len(x)), -torch.inf).triu(diagonal=1)
    normed = norm("layers.0.input_layernorm")(x)[None]
    x = x + attention(normed, position_embeddings=positions, attention_mask=mask)[0][0]
    x = x + mlp(norm("layers.0.post_attention_layernorm")(x))
    return norm("norm")(x)


@torch.no_grad()
def test_mtp_equals_a_head_built_from_transformers_modules(full: tuple[Path, Weights]) -> None:
    path, weights = full
    model = ReferenceModel.from_checkpoint(path, latent_norm_eps=HF_EPS)

    def normed(x: Tensor, name: str) -> Tensor:
        weight = weights[f"model.mtp.layers.0.{name}.m.weight"]
        return torch.nn.functional.rms_norm(x, (HIDDEN,), weight, eps=1e-5)

    following = weights["model.mtp.embed_tokens.weight"][PROMPT[1:]]
    left, right = normed(following, "enorm"), normed(model.hidden(PROMPT)[:-1], "hnorm")
    eh_proj = weights["model.mtp.layers.0.eh_proj.weight"]
    x = hf_dense_layer(weights, left @ eh_proj[:, :HIDDEN].T + right @ eh_proj[:, HIDDEN:].T)
    logits = model.mtp_logits(PROMPT)
    assert logits.shape == (len(PROMPT) - 1, VOCAB)
    torch.testing.assert_close(logits, x @ weights["lm_head.weight"].T, atol=1e-4, rtol=0)
    assert (model.mtp_logits(PROMPT, embedding="target") - logits).abs().max() > 0.1


def test_mtp_without_a_head_is_refused(tmp_path: Path) -> None:
    model = ReferenceModel.from_checkpoint(write(tmp_path, random_weights()))
    with pytest.raises(ValueError, match=r"no model\.mtp"):
        model.mtp_logits(PROMPT)


def test_bf16_stays_near_fp32(full: tuple[Path, Weights]) -> None:
    """bf16 throughout, yet the router in fp32: else experts flip and the gap is far larger."""
    exact = ReferenceModel.from_checkpoint(full[0])
    rounded = ReferenceModel.from_checkpoint(full[0], dtype=torch.bfloat16)
    assert rounded.hidden(PROMPT).dtype == torch.bfloat16
    assert rounded.layers[0].moe.router.classifier.dtype == torch.float32
    gap = (rounded.logprobs(PROMPT) - exact.logprobs(PROMPT)).abs()
    assert gap.mean() < 0.08  # 0.027 seen


def test_fp8_blocks_are_scaled_one_by_one() -> None:
    weight = torch.tensor([0.5, -3.0, 448.0]).repeat(100)[:, None].repeat(1, 130)  # [300, 130]
    scale = torch.tensor([[1.0, 2.0], [4.0, 0.25], [0.125, 10.0]])
    got = dequantize_block_fp8(weight.to(torch.float8_e4m3fn), scale)
    for row, col in [(0, 0), (127, 127), (128, 127), (127, 128), (255, 129), (256, 0), (299, 129)]:
        assert got[row, col] == weight[row, col] * scale[row // 128, col // 128]
    with pytest.raises(CheckpointError, match=r"\(2, 3\).*expected \(3, 2\)"):
        dequantize_block_fp8(weight.to(torch.float8_e4m3fn), scale.T)


def test_fp8_checkpoint_equals_its_dequantised_twin(tmp_path: Path) -> None:
    """Projections of attention, MLP and experts in FP8; each fits one block at this size."""
    plain, fp8 = random_weights(), random_weights()
    names = [name for name in plain if "_proj" in name]
    for i, name in enumerate(names):
        scale = torch.full((1, 1), 0.001 * (1 + i % 7))
        fp8[name] = (plain[name] / scale).to(torch.float8_e4m3fn)
        fp8[name + "_scale_inv"] = scale
        plain[name] = fp8[name].float() * scale
    quantisation = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (tmp_path / "fp8").mkdir()
    (tmp_path / "plain").mkdir()
    write(tmp_path / "fp8", fp8, quantization_config=quantisation)
    expected = ReferenceModel.from_checkpoint(write(tmp_path / "plain", plain))(PROMPT)
    assert torch.equal(ReferenceModel.from_checkpoint(tmp_path / "fp8")(PROMPT), expected)
    del fp8[names[0] + "_scale_inv"]
    write(tmp_path / "fp8", fp8)
    with pytest.raises(CheckpointError, match=re.escape(names[0] + "_scale_inv")):
        ReferenceModel.from_checkpoint(tmp_path / "fp8")


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.ngram_embeddings.embedders.3.weight",
        "model.layers.1.mlp.experts.5.down_proj.weight",
        "model.mtp.layers.0.enorm.m.weight",
    ],
)
def test_a_missing_or_misshaped_tensor_is_named(tmp_path: Path, name: str) -> None:
    weights = random_weights(ngram=True, mtp=True)
    tensor = weights.pop(name)
    with pytest.raises(CheckpointError, match=re.escape(repr(name)) + ".*missing"):
        ReferenceModel.from_checkpoint(write(tmp_path, weights, **NGRAM))
    weights[name] = tensor[:-1]
    with pytest.raises(CheckpointError, match=re.escape(repr(name)) + ".*expected"):
        ReferenceModel.from_checkpoint(write(tmp_path, weights, **NGRAM))


def test_a_tensor_that_nothing_reads_is_named(tmp_path: Path) -> None:
    """Such as n-gram tables next to a config.json that has lost their keys."""
    with pytest.raises(CheckpointError, match=r"unknown.*ngram_embeddings\.embedders\.0"):
        ReferenceModel.from_checkpoint(write(tmp_path, random_weights(ngram=True)))


@pytest.mark.parametrize("change", [{"mscale_all_dim": 0}, {"rope_type": "linear"}, {"foo": 1}])
def test_rope_scaling_with_unclear_meaning_is_refused(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    path = write(tmp_path, random_weights(), rope_scaling=YARN | change)
    with pytest.raises(ConfigError, match="rope_scaling"):
        ReferenceModel.from_checkpoint(path)


@pytest.mark.parametrize("tokens", [[], [1, VOCAB], [-1, 3], [[1, 2]]])
def test_tokens_outside_the_vocabulary_are_refused(tmp_path: Path, tokens: Any) -> None:
    model = ReferenceModel.from_checkpoint(write(tmp_path, random_weights()))
    with pytest.raises(ValueError, match="no prompt"):
        model(tokens)

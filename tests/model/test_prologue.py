"""Attention's own prologue in whole engines, on the CPU, against the oracle.

There it runs on torch, and for every step, prefills included: the engines load a plugin that makes
`use_mla_prologue` say so. Owns: that steps with our prologue mean what SGLang's mean; the kernels
are tests/kernels/test_mla_prologue.py's, and which steps take them is `test_which_steps` below.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longcat_kernels.mla_decode import FEW
from sglang_longcat.testing.engine_flags import nextn
from tests.harness import engine
from tests.model import injected
from tests.model.scoring import Answer, Oracle, ask, assert_same

PLUGIN = """
from sglang_longcat.layers import attention
from sglang_longcat.plugin import register as register_longcat

def register():
    register_longcat()  # whichever of the two plugins SGLang loads first
    attention.use_mla_prologue = lambda *args: True
    say_once("norm_and_store", "the prologue ran")
    say_once("mla_decode", "the split attention ran")

def say_once(name, text):
    original = getattr(attention, name)
    def said(*args, **kwargs):
        setattr(attention, name, original)
        print(text)
        return original(*args, **kwargs)
    setattr(attention, name, said)
"""


@pytest.fixture(scope="module")
def forced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of engines that find the plugin."""
    env = injected.plugin(tmp_path_factory.mktemp("plugin"), "forced_prologue", PLUGIN)
    return env | {"LONGCAT_SPLIT_ATTENTION": "64"}


def answers(
    path: Path, prompts: Sequence[list[int]], env: dict[str, str], **flags: Any
) -> list[Answer]:
    with engine(path, env=env, **flags) as llm:
        replies = ask(llm, list(prompts), logprobs_from=0)
        assert "the prologue ran" in llm.log
        assert "the split attention ran" in llm.log
    return replies


def test_prefill_and_decode(
    tiny: Path, prompts: dict[str, list[int]], oracle: Oracle, forced: dict[str, str]
) -> None:
    """Red if latents, norm weights, rope style, positions or slots are mixed up, or if a step
    attends before its rows are stored: decoded tokens read what prefill stored."""
    assert_same(answers(tiny, list(prompts.values()), forced), oracle)


def test_drafts_and_verification(
    tiny: Path, prompts: dict[str, list[int]], oracle: Oracle, forced: dict[str, str]
) -> None:
    """Red if a window's rows land elsewhere than in its own slots, or in the other model's pool."""
    some = [prompts[name] for name in ("1 tokens", "17 tokens", "200 tokens", "EOS inside")]
    assert_same(answers(tiny, some, forced, **nextn(3)), oracle)


def step(**changed: Any) -> bool:
    """`use_mla_prologue` of a bf16 decode step on a GPU with flashinfer, or of one with changes."""
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    from sglang_longcat.layers import attention
    from sglang_longcat.layers import step as step_module

    facts = SimpleNamespace(
        mode=ForwardMode.DECODE, backend="flashinfer", is_cuda=True, weights=torch.bfloat16,
        pool=MLATokenToKVPool, kv=torch.bfloat16, stored=torch.bfloat16, slots=3, deep_gemm=False,
        dcp=1, deterministic=False,
    )  # fmt: skip
    facts.__dict__.update(changed)
    pool = object.__new__(facts.pool)
    pool.dtype, pool.store_dtype = facts.kv, facts.stored
    weight = SimpleNamespace(dtype=facts.weights)
    layer = SimpleNamespace(
        current_attention_backend=facts.backend, rotary_emb=object(), dcp_size=facts.dcp,
        use_deep_gemm_bmm=facts.deep_gemm, w_kc=weight, w_vc=weight,
    )  # fmt: skip
    positions = SimpleNamespace(is_cuda=facts.is_cuda, shape=torch.Size([3]))
    batch = SimpleNamespace(forward_mode=facts.mode, out_cache_loc=torch.zeros(facts.slots))
    exec_ = SimpleNamespace(
        deterministic=SimpleNamespace(enable_deterministic_inference=facts.deterministic)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "get_token_to_kv_pool", lambda: pool)
        patch.setattr(step_module, "get_exec", lambda: exec_)
        return attention.use_mla_prologue(layer, positions, batch)  # type: ignore[arg-type]


def test_which_steps_take_it() -> None:
    """Red if a step takes the prologue whose backend would read keys that nobody passes, or whose
    pool holds other rows than the kernel writes."""
    from sglang.srt.mem_cache.memory_pool import DSATokenToKVPool
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    from sglang_longcat.kv_cache.pool import Fp8RowPool

    assert step()
    assert step(pool=Fp8RowPool, stored=torch.uint8, backend="fa3")
    assert step(mode=ForwardMode.TARGET_VERIFY, backend="fa3")
    assert step(backend="flashmla")
    for mode in (ForwardMode.EXTEND, ForwardMode.MIXED, ForwardMode.DRAFT_EXTEND_V2):
        assert not step(mode=mode)
    for backend in ("triton", "trtllm_mla", "torch_native"):
        assert not step(backend=backend)
    for change in (
        {"is_cuda": False},
        {"weights": torch.float8_e4m3fn},
        {"kv": torch.float8_e4m3fn, "stored": torch.uint8},
        {"pool": DSATokenToKVPool},
        {"deep_gemm": True},
        {"dcp": 2},
        {"slots": 4},
        {"deterministic": True},
    ):
        assert not step(**change), change


def split(
    width: int,
    requests: int,
    *,
    context: int = 4096,
    drafts: bool = False,
    rope: int = 64,
    hopper: bool = True,
    fp8_rows: bool = False,
) -> bool:
    """`use_mla_decode` of a step: a decode step of width 1, else a verification."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    from sglang_longcat.kv_cache.pool import Fp8RowPool
    from sglang_longcat.layers import attention
    from sglang_longcat.layers import step as step_module

    pool = object.__new__(Fp8RowPool if fp8_rows else object)
    mode = ForwardMode.DECODE if width == 1 else ForwardMode.TARGET_VERIFY
    batch = SimpleNamespace(forward_mode=mode, req_pool_indices=torch.zeros(requests))
    query = torch.zeros(requests * width, 2, 8)
    layer = SimpleNamespace(is_draft=drafts, kv_lora_rank=512, qk_rope_head_dim=rope)
    model = SimpleNamespace(context_len=context)
    exec_ = SimpleNamespace(deterministic=SimpleNamespace(enable_deterministic_inference=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "process_model_config", lambda: model)
        patch.setattr(step_module, "get_exec", lambda: exec_)
        patch.setattr(attention, "is_hopper", lambda query: hopper)
        patch.setattr(attention, "get_token_to_kv_pool", lambda: pool)
        return attention.use_mla_decode(layer, query, batch)  # type: ignore[arg-type]


def test_which_steps_attend_with_our_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if the default takes it where it loses, or if a switch does not reach it."""
    assert split(1, 1, context=1 << 18)
    assert split(1, FEW)
    assert split(4, 1)
    assert not split(1, FEW + 1)
    assert not split(4, 1, context=1 << 18)
    assert not split(4, 2)
    assert not split(1, 1, drafts=True)
    assert not split(1, 1, rope=8)
    assert not split(1, 1, hopper=False)
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", "8")
    assert split(4, 2, context=1 << 18)
    assert split(1, 1, hopper=False)
    assert not split(1, 9)
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", "2")
    assert not split(1, 3)
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "mla_decode")
    assert not split(1, 1)
    monkeypatch.delenv("LONGCAT_SGLANG_OPS")
    monkeypatch.setenv("LONGCAT_SPLIT_ATTENTION", "0")
    assert not split(1, 1)
    assert split(4, 64, fp8_rows=True), "no other kernel reads FP8 rows"
    assert not split(1, 1, fp8_rows=True, drafts=True), "the step's backend knows its keys"


def test_which_steps_quantise_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Red if a projection that takes bf16 gets a pair, or one that takes a pair quantises again."""
    from sglang_longcat.layers import attention, operations

    monkeypatch.setattr(operations, "is_deterministic", lambda: False)
    monkeypatch.setattr(attention, "reads_pair", lambda projection, x: projection == "pairs")

    def quantises(tokens: int, values: int = 128, takes: str = "pairs") -> bool:
        layer = SimpleNamespace(v_head_dim=values, o_proj=takes)
        return attention.use_value_pair(layer, torch.zeros(tokens, 2, 8))  # type: ignore[arg-type]

    assert [tokens for tokens in range(1, 9) if quantises(tokens)] == [3, 4]
    assert not quantises(4, values=64)
    assert not quantises(4, takes="bf16")
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "fp8_values")
    assert not quantises(4)


@pytest.mark.parametrize(
    ("prefix", "capacity", "method"),
    [(0, 100, "MHA_ONE_SHOT"), (5, 100, "MHA_ONE_SHOT"), (5, 9, "MHA_CHUNKED_KV")],
)
def test_a_prefill_widens_its_prefix_of_fp8_rows(prefix: int, capacity: int, method: str) -> None:
    """Red if a short prefix is absorbed, which SGLang's fa3 does over the whole pool; or if steps
    that the backend reads by itself are widened."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.models.deepseek_common import attention_backend_handler as handlers
    from sglang.srt.models.deepseek_common.attention_forward_methods import AttnForwardMethod

    from sglang_longcat.kv_cache.pool import Fp8RowPool
    from sglang_longcat.layers import attention

    def chosen(mode: ForwardMode, pool: type, backend: str = "fa3") -> AttnForwardMethod:
        layer = object.__new__(attention.LongcatAttention)
        layer.__dict__.update(current_attention_backend=backend)
        batch = SimpleNamespace(
            forward_mode=mode,
            seq_lens_cpu=[prefix + 5],
            get_max_chunk_capacity=lambda: capacity,
        )
        plain = prefix == 0 and mode in (ForwardMode.EXTEND, ForwardMode.MIXED)
        sglangs = AttnForwardMethod.MHA_ONE_SHOT if plain else AttnForwardMethod.MLA
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                attention.DeepseekV2AttentionMLA,
                "dispatch_attn_forward_method",
                lambda *_: sglangs,
            )
            patch.setattr(attention, "get_token_to_kv_pool", lambda: object.__new__(pool))
            return layer.dispatch_attn_forward_method(batch)  # type: ignore[arg-type]

    assert "fa3" in handlers.MHA_ONE_SHOT_SUPPORTED_BACKENDS
    for mode in (ForwardMode.EXTEND, ForwardMode.MIXED):
        assert chosen(mode, Fp8RowPool) is AttnForwardMethod[method]
    if prefix:
        assert chosen(ForwardMode.EXTEND, object) is AttnForwardMethod.MLA
        assert chosen(ForwardMode.EXTEND, Fp8RowPool, "torch_native") is AttnForwardMethod.MLA
    for mode in (ForwardMode.DECODE, ForwardMode.TARGET_VERIFY, ForwardMode.DRAFT_EXTEND_V2):
        assert chosen(mode, Fp8RowPool) is AttnForwardMethod.MLA

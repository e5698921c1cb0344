"""SGLang's DeepGEMM runner before and after its GEMMs, with expert ids as our router gives them.

Its own kernels run; experts that return their input stand in for the GEMMs, so that the sum over
slots is known. Numbers are bf16.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longcat_kernels.moe_router import Options, route

EXPERTS, IDENTITY, TOP_K, HIDDEN = 8, 4, 6, 256
TOKENS = 10
HALF_ULP = 2**-8  # relative, of bf16: the kernel adds in fp32 and rounds once


pytestmark = pytest.mark.gpu


@pytest.fixture(params=["compact", "masked"])
def runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's module, for one of the two layouts it gives rows to the GEMM in."""
    from sglang.srt.layers.moe.moe_runner import deep_gemm

    monkeypatch.setenv("SGLANG_DEEPGEMM_STANDARD_LAYOUT", request.param)
    monkeypatch.setattr(
        deep_gemm, "use_symmetric_memory", lambda *_, **__: contextlib.nullcontext()
    )
    monkeypatch.setattr(deep_gemm, "is_allocation_symmetric", lambda: False)
    monkeypatch.setattr(deep_gemm, "get_parallel", lambda: SimpleNamespace(tp_group=None))
    return deep_gemm


def routing(held: tuple[int, int]) -> Any:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(TOKENS, EXPERTS + IDENTITY, generator=draw)
    logits[-1, :TOP_K] = -100.0  # the last token: no expert but the last two
    options = Options(TOP_K, EXPERTS, 6.0, held)
    return route(logits.cuda(), torch.zeros(EXPERTS + IDENTITY, device="cuda"), options)


@pytest.mark.parametrize("held", [(0, EXPERTS), (EXPERTS // 2, EXPERTS // 2)], ids=["all", "half"])
def test_only_experts_have_rows(runner: Any, held: tuple[int, int]) -> None:
    """Red if a slot of an identity expert, or of another rank's, has a row computed for it, or adds
    to the sum."""
    chosen, count = routing(held), held[1]
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    weights = torch.zeros(count, 2 * HIDDEN, HIDDEN, dtype=torch.bfloat16, device="cuda")
    info = runner.DeepGemmMoeQuantInfo(weights, weights, use_fp8=False)
    given = SimpleNamespace(
        hidden_states=x.cuda(), topk_output=(chosen.weights, chosen.expert_ids, None)
    )
    state: dict[str, Any] = {}
    rows = runner.pre_permute_standard_to_deep_gemm(given, info, config(count), state)
    routed = chosen.expert_ids >= 0
    wanted = torch.bincount(chosen.expert_ids[routed], minlength=count).tolist()
    assert rows_by_expert(rows, count) == wanted
    assert sum(wanted) < routed.numel()

    outputs = SimpleNamespace(hidden_states=rows.hidden_states.reshape(-1, HIDDEN).clone())
    combined = runner.post_permute_deep_gemm_to_standard(outputs, info, config(count), state)
    total = (chosen.weights * routed).sum(dim=1, keepdim=True).cpu() * x.float()
    torch.testing.assert_close(
        combined.hidden_states.float().cpu(), total, rtol=2 * HALF_ULP, atol=1e-6
    )


def config(experts: int) -> SimpleNamespace:
    """What our layer leaves in SGLang's: more experts to choose from than this rank has."""
    return SimpleNamespace(
        num_local_experts=experts,
        num_experts=EXPERTS + IDENTITY,
        top_k=TOP_K,
        inplace=False,
        routed_scaling_factor=None,
        activation="silu",
        swiglu_limit=None,
        gemm1_alpha=None,
    )


def rows_by_expert(rows: Any, experts: int) -> list[int]:
    """Rows that the GEMM computes, by expert."""
    if rows.use_masked_gemm:
        return rows.masked_m.tolist()  # type: ignore[no-any-return]
    computed = rows.m_indices[rows.m_indices >= 0]
    return torch.bincount(computed, minlength=experts).tolist()  # type: ignore[no-any-return]

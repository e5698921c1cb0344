"""A norm that is handed a mixture adds it, whatever it does besides; nobody may lose one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from longcat_kernels.expert_sum import workloads
from sglang_longcat.layers import deferred_sum, step
from sglang_longcat.layers.moe import Mixture
from sglang_longcat.layers.norm import FinalNorm, StageNorm

EPS = 1e-5


def given(width: int = 64) -> tuple[Mixture, torch.Tensor, torch.Tensor]:
    """A mixture, the dense branch's output and the residual."""
    inputs = workloads.make_inputs(5, seed=0, device="cpu", dtype=torch.float32, width=width)
    mixture = Mixture(inputs.routed, inputs.ids, inputs.x, inputs.weight)
    return mixture, inputs.addend, torch.randn(5, width, generator=torch.manual_seed(1))


def norm_of(kind: type[Any], width: int = 64) -> Any:
    norm = kind(width, eps=EPS)
    norm.weight.data.uniform_(0.5, 1.5, generator=torch.manual_seed(2))
    return norm


@pytest.fixture(autouse=True)
def plain_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's norm without the context of an engine."""

    def native(self: Any, x: torch.Tensor, residual: Any = None, *rest: Any, **options: Any) -> Any:
        return self.forward_native(x, residual, *rest, **options)

    monkeypatch.setattr(deferred_sum.RMSNorm, "forward", native)


@pytest.mark.parametrize("kind", [StageNorm, FinalNorm])
@pytest.mark.parametrize("how", ["fused", "extra", "no residual", "quantises"])
def test_the_mixture_is_added_once(kind: type[Any], how: str) -> None:
    """Red if a path of the norm forgets it, or adds it again in the next call."""
    mixture, dense, residual = given()
    norm = norm_of(kind)
    if how == "quantises" and kind is StageNorm:
        norm.feeds_fp8 = lambda x: True
    rest = {"extra": (residual, residual * 2), "no residual": ()}.get(how, (residual,))
    wanted = norm.forward_native(mixture.sum(dense.clone()), *(value.clone() for value in rest))
    left = deferred_sum.defer(mixture, dense.clone())
    deferred_sum.assert_deferred(left)
    with pytest.raises(RuntimeError, match="without the expert outputs"):
        deferred_sum.assert_consumed(left)
    got = norm(left, *(value.clone() for value in rest))
    torch.testing.assert_close(got, wanted)
    deferred_sum.assert_consumed(left)


def test_a_boundary_that_copies_is_noticed() -> None:
    mixture, dense, _ = given()
    with pytest.raises(RuntimeError, match="lost the expert outputs"):
        deferred_sum.assert_deferred(deferred_sum.defer(mixture, dense) + 0)


@pytest.mark.parametrize(
    ("mode", "ranks", "deterministic", "dims", "left"),
    [
        (ForwardMode.DECODE, 1, False, 3, True),
        (ForwardMode.TARGET_VERIFY, 1, False, 3, True),
        (ForwardMode.EXTEND, 1, False, 3, False),
        (ForwardMode.DECODE, 2, False, 3, False),
        (ForwardMode.DECODE, 1, True, 3, False),
        (ForwardMode.DECODE, 1, False, 2, False),
    ],
)
def test_which_steps_leave_it(
    monkeypatch: pytest.MonkeyPatch,
    mode: ForwardMode,
    ranks: int,
    deterministic: bool,
    dims: int,
    left: bool,
) -> None:
    """Red if a sum over ranks comes between, or a step without `finalize` leaves it."""
    flags = SimpleNamespace(
        deterministic=SimpleNamespace(enable_deterministic_inference=deterministic)
    )
    monkeypatch.setattr(step, "get_exec", lambda: flags)
    monkeypatch.setattr(deferred_sum, "get_parallel", lambda: SimpleNamespace(tp_size=ranks))
    mixture = Mixture(torch.zeros((2,) * dims), torch.zeros(2, 2), None, None)
    batch: Any = SimpleNamespace(forward_mode=mode)
    assert deferred_sum.use_deferred_sum(mixture, batch) is left
    monkeypatch.setenv("LONGCAT_SGLANG_OPS", "finalize_norm")
    assert deferred_sum.use_deferred_sum(mixture, batch) is False

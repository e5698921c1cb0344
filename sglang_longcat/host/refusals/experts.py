"""Flags that move, page or observe experts, or run them with other kernels."""

from __future__ import annotations

from sglang_longcat.host.refusals.row import LEAVE_OUT, Refusal, only, switch

_RUNNERS = ("auto", "triton", "deep_gemm")  # they skip identity slots
_OWN_ROUTER = "SGLang records what its own router chooses, and this model has another router"


def _runs_deep_gemm() -> bool:
    """On a GPU before Hopper SGLang's DeepGEMM runner would fail in its first step. On a CPU SGLang
    would not ask it."""
    from sglang.srt.layers import deep_gemm_wrapper

    return bool(deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM)


ROWS = (
    switch("--enable-eplb", "expert placement cannot move identity experts"),
    Refusal(
        flag="--ep-num-redundant-experts",
        is_refused=lambda args: args.ep_num_redundant_experts > 0,
        reason="identity experts have no copies",
        remedy="leave it at 0",
    ),
    only("--init-expert-location", ("trivial",), "identity experts have no location"),
    only("--ep-dispatch-algorithm", (None,), "identity experts have no copies"),
    only("--moe-a2a-backend", ("none",), "only 'none' is tested"),
    only(
        "--moe-runner-backend",
        _RUNNERS,
        "only 'auto', 'triton' and 'deep_gemm' skip identity slots",
    ),
    Refusal(
        flag="--moe-runner-backend deep_gemm",
        is_refused=lambda args: args.moe_runner_backend == "deep_gemm" and not _runs_deep_gemm(),
        reason="DeepGEMM does not run here: wants a GPU from Hopper on",
        remedy=LEAVE_OUT,
    ),
    switch("--enable-two-batch-overlap", "no strategy for this layer"),
    # The recorders are fed in SGLang's select_experts, which `layers/moe.py` does not call.
    switch("--enable-return-routed-experts", _OWN_ROUTER),
    only("--expert-distribution-recorder-mode", (None,), f"{_OWN_ROUTER}: it would count nothing"),
    only("--expert-balancedness-report-mode", ("off",), f"{_OWN_ROUTER}: it would report nothing"),
    # Both replace the layer that holds the experts' weights (paged_experts/method.py,
    # kt_ep_wrapper.py), and neither knows the ids of identity experts.
    switch("--enable-paged-experts", "not tested, it does not know identity experts"),
    switch("--kt-weight-path", "ktransformers has no weights of this model"),
    only("--elastic-ep-backend", (None,), "not tested, it moves experts between ranks"),
    switch("--enable-elastic-expert-backup", "not tested, it moves experts between ranks"),
)

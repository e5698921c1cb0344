"""Flags that give ranks other parts of the model, of a batch or of a sequence."""

from __future__ import annotations

from sglang_longcat.host.refusals.row import LEAVE_OUT, Refusal, above, switch


def _above_one(flag: str, reason: str, remedy: str = "leave it at 1") -> Refusal:
    return above(flag, 1, reason, remedy)


_PARTS = "a rank would have a part of each sequence, and the N-gram cache needs every token"

ROWS = (
    # Ray's actors load no plugins (0.5.23: load_plugins is in run_scheduler_process, which they do
    # not call), so neither our class nor its checks exist there. Seen only by `refuse_early`.
    # Remove when: ray/scheduler_actor.py loads plugins.
    switch(
        "--use-ray",
        "starts schedulers that load no plugins, so SGLang's own LongCat class would answer, "
        "wrongly",
        "start one server per node instead (--nnodes), on a Ray cluster with launch/ray/serve.py",
    ),
    _above_one("--pp-size", "pipeline parallelism is not implemented", "use --tp-size"),
    _above_one("--dwdp-size", "not tested, it gives a layer other experts after loading"),
    _above_one("--attn-cp-size", _PARTS),
    _above_one("--dcp-size", "not tested, it splits the KV rows of a sequence"),
    _above_one("--moe-dp-size", "not tested"),
    # SGLang's stages then skip the sum over ranks, but the class of the dense MLPs still shards:
    # with two ranks logprobs are off by up to 2.6 nats (tiny checkpoint, CPU).
    Refusal(
        flag="--moe-dense-tp-size {args.moe_dense_tp_size}",
        is_refused=lambda args: args.moe_dense_tp_size not in (None, args.tp_size),
        reason="the dense MLPs are always split over all ranks, and would not be summed",
        remedy=LEAVE_OUT,
    ),
    switch("--enable-prefill-cp", _PARTS),
    switch("--enable-kv-cache-sharding", "not tested, it splits the KV cache over ranks"),
    switch("--enable-pd-role-switch", "not tested", "start one worker per role"),
    switch("--enable-pdmux", "the model has no split prefill"),
)

"""Server flags that this model does not support, refused by name before weights are loaded.

Owns: the two tables of refused flags and their messages. How long a window of drafts may be is
decided in `speculation/window_limits.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang_longcat.speculation.window_limits import CHAIN_ALGORITHMS, MAX_BRANCHES, MAX_WINDOW

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_RUNNERS = ("auto", "triton", "deep_gemm")  # of experts; they skip identity slots


class UnsupportedFlag(ValueError):
    """A server flag that LongCat-Flash-Lite cannot be served with."""


class Refusal(NamedTuple):
    """A row of the tables below. The message is "flag: reason; remedy"."""

    flag: str  # as the user typed it; {args.NAME} stands for its value
    is_refused: Callable[[Any], bool]  # given SGLang's ServerArgs
    reason: str
    remedy: str

    def message(self, args: Any) -> str:
        return f"{self.flag.format(args=args)}: {self.reason}; {self.remedy}"


def _runs_deep_gemm() -> bool:
    """On a GPU before Hopper SGLang's DeepGEMM runner would fail in its first step. On a CPU SGLang
    would not ask it."""
    from sglang.srt.layers import deep_gemm_wrapper

    return bool(deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM)


_REFUSED = (
    Refusal(
        flag="--pp-size {args.pp_size}",
        is_refused=lambda args: args.pp_size > 1,
        reason="pipeline parallelism is not implemented",
        remedy="use --tp-size",
    ),
    Refusal(
        flag="--enable-eplb",
        is_refused=lambda args: args.enable_eplb,
        reason="expert placement cannot move identity experts",
        remedy="leave it out",
    ),
    Refusal(
        flag="--ep-num-redundant-experts",
        is_refused=lambda args: args.ep_num_redundant_experts > 0,
        reason="identity experts have no copies",
        remedy="leave it at 0",
    ),
    # SGLang keeps one adapter per layer and module name. Here a layer has two attentions and two
    # MLPs, which would share it, and the N-gram embedding has no adapter at all.
    Refusal(
        flag="--enable-lora, --lora-paths, --lora-target-modules",
        is_refused=lambda args: bool(
            args.enable_lora or args.lora_paths or args.lora_target_modules
        ),
        reason="LoRA is not implemented, neither on embed_tokens (the N-gram embedding) nor on "
        "double layers",
        remedy="merge it into the weights",
    ),
    Refusal(
        flag="--init-expert-location {args.init_expert_location}",
        is_refused=lambda args: args.init_expert_location != "trivial",
        reason="identity experts have no location",
        remedy="leave it out",
    ),
    Refusal(
        flag="--ep-dispatch-algorithm {args.ep_dispatch_algorithm}",
        is_refused=lambda args: args.ep_dispatch_algorithm is not None,
        reason="identity experts have no copies",
        remedy="leave it out",
    ),
    Refusal(
        flag="--enable-pd-role-switch",
        is_refused=lambda args: args.enable_pd_role_switch,
        reason="not tested",
        remedy="start one worker per role",
    ),
    Refusal(
        flag="--enable-pdmux",
        is_refused=lambda args: args.enable_pdmux,
        reason="the model has no split prefill",
        remedy="leave it out",
    ),
    Refusal(
        flag="--is-embedding",
        is_refused=lambda args: args.is_embedding,
        reason="the model generates text only",
        remedy="leave it out",
    ),
    Refusal(
        flag="--moe-a2a-backend {args.moe_a2a_backend}",
        is_refused=lambda args: args.moe_a2a_backend != "none",
        reason="only 'none' is tested",
        remedy="leave it out",
    ),
    Refusal(
        flag="--moe-runner-backend {args.moe_runner_backend}",
        is_refused=lambda args: args.moe_runner_backend not in _RUNNERS,
        reason="only 'auto', 'triton' and 'deep_gemm' skip identity slots",
        remedy="leave it out",
    ),
    Refusal(
        flag="--moe-runner-backend deep_gemm",
        is_refused=lambda args: args.moe_runner_backend == "deep_gemm" and not _runs_deep_gemm(),
        reason="DeepGEMM does not run here: wants a GPU from Hopper on",
        remedy="leave it out",
    ),
    Refusal(
        flag="--dwdp-size {args.dwdp_size}",
        is_refused=lambda args: args.dwdp_size > 1,
        reason="not tested, it gives a layer other experts after loading",
        remedy="leave it at 1",
    ),
    Refusal(
        flag="--enable-two-batch-overlap",
        is_refused=lambda args: args.enable_two_batch_overlap,
        reason="no strategy for this layer",
        remedy="leave it out",
    ),
)

_TREE = "a tree of drafts has several tokens at one position, and the N-gram cache holds one"
_REFUSED_SPECULATION = (
    Refusal(
        flag="--speculative-algorithm {args.speculative_algorithm}",
        is_refused=lambda args: args.speculative_algorithm not in CHAIN_ALGORITHMS,
        reason="not implemented, or not tested",
        remedy="use NEXTN (or EAGLE, its other name), STANDALONE or NGRAM",
    ),
    Refusal(
        flag="--speculative-ngram-max-bfs-breadth {args.speculative_ngram_max_bfs_breadth}",
        is_refused=lambda args: (
            args.speculative_algorithm == "NGRAM"
            and args.speculative_ngram_max_bfs_breadth not in (None, MAX_BRANCHES)
        ),
        reason=_TREE,
        remedy=f"set it to {MAX_BRANCHES}",
    ),
    Refusal(
        flag="--speculative-eagle-topk {args.speculative_eagle_topk}",
        is_refused=lambda args: (
            args.speculative_algorithm != "NGRAM"
            and args.speculative_eagle_topk not in (None, MAX_BRANCHES)
        ),
        reason=_TREE,
        remedy=f"set it to {MAX_BRANCHES}",
    ),
    Refusal(
        flag="--speculative-num-draft-tokens {args.speculative_num_draft_tokens}",
        is_refused=lambda args: (args.speculative_num_draft_tokens or 0) > MAX_WINDOW,
        reason=f"the N-gram cache verifies at most {MAX_WINDOW} tokens a step",
        remedy="lower it (and --speculative-num-steps)",
    ),
    # eagle_sample calls no processor: only an answer's first token meets it. Under overlap the
    # output that SGLang's own processors read on the host lacks the window before.
    Refusal(
        flag="--enable-custom-logit-processor with --speculative-algorithm",
        is_refused=lambda args: args.enable_custom_logit_processor,
        reason="a processor reads the tokens before it, and a verify window has several tokens "
        "that no processor has seen",
        remedy="leave one of the two out",
    ),
    Refusal(
        flag="--speculative-adaptive",
        is_refused=lambda args: args.speculative_adaptive,
        reason="not tested",
        remedy="leave it out",
    ),
)


def unsupported_flags(args: ServerArgs) -> list[str]:
    """One line per refused flag: the flag, the reason, and what to do instead."""
    from sglang.srt.arg_groups.overrides import resolved_view

    messages = [row.message(args) for row in _REFUSED if row.is_refused(args)]
    if args.speculative_algorithm is None:
        return messages
    resolved = resolved_view(args)  # `args` keeps what was typed: no defaults, no aliases
    return messages + [
        row.message(resolved) for row in _REFUSED_SPECULATION if row.is_refused(resolved)
    ]


def refuse_unsupported(args: ServerArgs) -> None:
    """Raise UnsupportedFlag naming every refused flag."""
    messages = unsupported_flags(args)
    if messages:
        raise UnsupportedFlag(
            "sglang-longcat cannot serve LongCat-Flash-Lite with these flags:\n  "
            + "\n  ".join(messages)
        )

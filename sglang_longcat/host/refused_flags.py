"""Server flags that this model does not support yet, refused by name before weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang_longcat.ngram.cache import RING

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

_CHAIN_ALGORITHMS = ("EAGLE", "NEXTN", "NGRAM", "STANDALONE")
MAX_WINDOW = RING - 3  # n-1 predecessors of a 4-gram


class UnsupportedFlag(ValueError):
    """A server flag that LongCat-Flash-Lite cannot be served with."""


def unsupported_flags(args: ServerArgs) -> list[str]:
    """One line per refused flag: the flag, why, and what to use instead."""
    refused = {
        f"--pp-size {args.pp_size}: pipeline parallelism is not implemented; use --tp-size": (
            args.pp_size > 1
        ),
        "--enable-eplb: expert placement cannot move identity experts; leave it out": (
            args.enable_eplb
        ),
        "--ep-num-redundant-experts: identity experts have no copies; leave it at 0": (
            args.ep_num_redundant_experts > 0
        ),
        # SGLang keeps one adapter per layer and module name; here a layer has two attentions and
        # two MLPs, which would share it, and the N-gram embedding has no adapter at all.
        "--enable-lora, --lora-paths, --lora-target-modules: LoRA is not implemented, neither on "
        "embed_tokens (the N-gram embedding) nor on double layers; merge it into the weights": (
            bool(args.enable_lora or args.lora_paths or args.lora_target_modules)
        ),
        f"--init-expert-location {args.init_expert_location}: identity experts have no location; "
        "leave it out": args.init_expert_location != "trivial",
        f"--ep-dispatch-algorithm {args.ep_dispatch_algorithm}: identity experts have no copies; "
        "leave it out": args.ep_dispatch_algorithm is not None,
        "--enable-pd-role-switch: not tested; start one worker per role": (
            args.enable_pd_role_switch
        ),
        "--enable-pdmux: the model has no split prefill; leave it out": args.enable_pdmux,
        "--is-embedding: the model generates text only; leave it out": args.is_embedding,
        f"--moe-a2a-backend {args.moe_a2a_backend}: only 'none' is tested; leave it out": (
            args.moe_a2a_backend != "none"
        ),
        f"--moe-runner-backend {args.moe_runner_backend}: only 'auto', 'triton' and "
        "'deep_gemm' skip identity slots; leave it out": (
            args.moe_runner_backend not in ("auto", "triton", "deep_gemm")
        ),
        "--moe-runner-backend deep_gemm: DeepGEMM does not run here: wants a GPU from Hopper on; "
        "leave it out": args.moe_runner_backend == "deep_gemm" and not _runs_deep_gemm(),
        f"--dwdp-size {args.dwdp_size}: not tested, it gives a layer other experts after loading; "
        "leave it at 1": args.dwdp_size > 1,
        "--enable-two-batch-overlap: no strategy for this layer; leave it out": (
            args.enable_two_batch_overlap
        ),
    }
    return [message for message, is_set in refused.items() if is_set] + _speculative_flags(args)


def _runs_deep_gemm() -> bool:
    """Elsewhere SGLang's runner would only fail at its first step, or not be asked (CPU)."""
    from sglang.srt.layers import deep_gemm_wrapper

    return bool(deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM)


def _speculative_flags(args: ServerArgs) -> list[str]:
    """Drafted tokens must form one chain, which fits the N-gram cache's ring with the n-1 tokens
    before it: a token is hashed with those at the positions just before its own."""
    from sglang.srt.arg_groups.overrides import resolved_view

    if args.speculative_algorithm is None:
        return []
    view: Any = resolved_view(args)  # `args` keeps what was typed: no defaults, no aliases
    algorithm, window = view.speculative_algorithm, view.speculative_num_draft_tokens or 0
    breadth = (
        ("--speculative-ngram-max-bfs-breadth", view.speculative_ngram_max_bfs_breadth)
        if algorithm == "NGRAM"
        else ("--speculative-eagle-topk", view.speculative_eagle_topk)
    )
    refused = {
        f"--speculative-algorithm {algorithm}: not implemented, or not tested; use NEXTN (or "
        "EAGLE, its other name), STANDALONE or NGRAM": algorithm not in _CHAIN_ALGORITHMS,
        f"{breadth[0]} {breadth[1]}: a tree of drafts has several tokens at one position, and the "
        "N-gram cache holds one; set it to 1": breadth[1] not in (None, 1),
        f"--speculative-num-draft-tokens {window}: the N-gram cache verifies at most {MAX_WINDOW} "
        "tokens a step; lower it (and --speculative-num-steps)": window > MAX_WINDOW,
        "--speculative-adaptive: not tested; leave it out": view.speculative_adaptive,
    }
    return [message for message, is_set in refused.items() if is_set]


def refuse_unsupported(args: ServerArgs) -> None:
    """Raise UnsupportedFlag naming every refused flag."""
    messages = unsupported_flags(args)
    if messages:
        raise UnsupportedFlag(
            "sglang-longcat cannot serve LongCat-Flash-Lite with these flags:\n  "
            + "\n  ".join(messages)
        )

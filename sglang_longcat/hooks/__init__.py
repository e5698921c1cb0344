"""The functions of SGLang that every server of ours changes, one per file.

A hook is the last resort, after a public registry and a subclass. Each file says why it exists,
which upstream function it changes, and when it can go. `register_all` registers the hooks of this
folder; `verify` proves that every hook took effect, those of `cpu/` too.

On a CPU eight more hooks are registered, by the five files that need them: cpu/experts.py
(moe_forward_native), cpu/fp8.py (block_quant_to_tensor_quant), cpu/rope.py (get_rope_cpu),
cpu/reduce_scatter.py (reduce_scatterv) and cpu/speculative.py (draft backend, greedy check, overlap
check, gather). testing/dummy_routing.py registers one where LONGCAT_DUMMY_ROUTING=1.
"""

from __future__ import annotations

from sglang_longcat.hooks import (
    arrived_requests,
    beam_search,
    control_requests,
    detokenize_tokens,
    embedding_requests,
    expert_configs,
    logit_processors,
    ngram_draft_chain,
    prompt_tokens,
    release_memory,
    request_fields,
    request_slots,
    resume_memory,
    route_errors,
    scheduler_errors,
    seed_predecessors,
    verify_sampling,
    weight_update,
)

AFTER = (
    arrived_requests,
    ngram_draft_chain,
    prompt_tokens,
    request_slots,
    route_errors,
    scheduler_errors,
    seed_predecessors,
)
AROUND = (
    beam_search,
    control_requests,
    detokenize_tokens,
    embedding_requests,
    expert_configs,
    logit_processors,
    release_memory,
    request_fields,
    resume_memory,
    verify_sampling,
    weight_update,
)
ALL = (*AFTER, *AROUND)


def register_all() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in AFTER:
        HookRegistry.register(hook.TARGET, hook.apply, HookType.AFTER)
    for hook in AROUND:
        HookRegistry.register(hook.TARGET, hook.apply, HookType.AROUND)


def verify() -> None:
    """Raise RuntimeError unless every hook is in force in this process, those of `cpu/` too. SGLang
    itself only logs a hook that failed."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    ours = {
        target
        for target, registered in HookRegistry._hooks.items()
        if any(function.__module__.startswith("sglang_longcat.") for _, function, _ in registered)
    }
    for target in sorted({hook.TARGET for hook in ALL} | ours):
        if target not in ours or target not in HookRegistry._patched:
            raise RuntimeError(
                f"sglang-longcat: the hook on {target} did not apply, expected it in every "
                "scheduler process. Look for 'Failed to apply hooks' above; set LONGCAT_DISABLE=1 "
                "to serve without the plugin."
            )

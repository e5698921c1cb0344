"""The functions of SGLang that every server of ours changes, one per file.

A hook is the last resort, after a public registry and a subclass. Each file says why it exists,
which upstream function it changes, and when it can go. `register_all` registers the hooks of this
folder; `verify` proves that every hook took effect, those of `cpu/` too.

On a CPU eight more hooks are registered, by the five files that need them: cpu/experts.py
(moe_forward_native), cpu/fp8.py (block_quant_to_tensor_quant), cpu/rope.py (get_rope_cpu),
cpu/reduce_scatter.py (reduce_scatterv) and cpu/speculative.py (draft backend, greedy check, overlap
check, gather). Three files of tool_parser/ register one each (reasoning_tokens.py, refusal_hook.py,
endless_hook.py), and testing/dummy_routing.py one where LONGCAT_DUMMY_ROUTING=1.
testing/smaller_gpu.py changes one of SGLang and one of torch where LONGCAT_GPU_MEMORY_MIB is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from sglang_longcat.hooks import (
    anthropic_stop,
    anthropic_stream_stop,
    arrived_requests,
    beam_search,
    control_requests,
    dead_grammar,
    detokenize_tokens,
    embedding_requests,
    expert_configs,
    fp8_draft_backend,
    grammar_end,
    kv_cache_dtype,
    kv_pool_class,
    kv_row_width,
    logit_processors,
    missing_dp_node,
    missing_node,
    ngram_draft_chain,
    no_token_logprobs,
    one_walk,
    prompt_tokens,
    release_memory,
    request_fields,
    request_slots,
    response_tokens,
    resume_memory,
    route_errors,
    scheduler_errors,
    seed_predecessors,
    verify_sampling,
    weight_update,
)

AFTER = (
    arrived_requests,
    dead_grammar,
    kv_cache_dtype,
    kv_pool_class,
    kv_row_width,
    ngram_draft_chain,
    prompt_tokens,
    request_slots,
    response_tokens,
    route_errors,
    scheduler_errors,
    seed_predecessors,
)
AROUND = (
    anthropic_stop,
    anthropic_stream_stop,
    beam_search,
    control_requests,
    detokenize_tokens,
    embedding_requests,
    expert_configs,
    fp8_draft_backend,
    grammar_end,
    logit_processors,
    missing_dp_node,
    missing_node,
    no_token_logprobs,
    one_walk,
    release_memory,
    request_fields,
    resume_memory,
    verify_sampling,
    weight_update,
)
ALL = (*AFTER, *AROUND)
# Those that act where HTTP is answered, and not in the scheduler.
HTTP = (
    anthropic_stop,
    anthropic_stream_stop,
    control_requests,
    detokenize_tokens,
    embedding_requests,
    one_walk,
    request_fields,
    response_tokens,
)


def register_all(hooks: Sequence[ModuleType] = ALL) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in hooks:
        kind = HookType.AFTER if hook in AFTER else HookType.AROUND
        HookRegistry.register(hook.TARGET, hook.apply, kind)
    if one_walk.TARGET not in HookRegistry._patched:
        _apply_now(one_walk.TARGET)


def _apply_now(target: str) -> None:
    """What `HookRegistry.apply_hooks` does for every target once all plugins have run. Other
    targets wait for that, since a later plugin may hook the same ones."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    HookRegistry._apply_target(target, HookRegistry._hooks[target])
    HookRegistry._patched.add(target)


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

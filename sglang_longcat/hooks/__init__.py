"""Every place where we change SGLang's own functions, one per file.

A hook is the last resort after a public registry and a subclass. Each file says why it exists, the
upstream function, and when it can go; `register_all` applies the list below, `verify` proves that
every one took effect.
"""

from __future__ import annotations

from sglang_longcat.hooks import (
    arrived_requests,
    beam_search,
    expert_configs,
    ngram_draft_chain,
    prompt_tokens,
    request_slots,
    seed_predecessors,
    verify_sampling,
    weight_update,
)

AFTER = (arrived_requests, ngram_draft_chain, prompt_tokens, request_slots, seed_predecessors)
AROUND = (beam_search, expert_configs, verify_sampling, weight_update)
ALL = (*AFTER, *AROUND)


def register_all() -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in AFTER:
        HookRegistry.register(hook.TARGET, hook.apply, HookType.AFTER)
    for hook in AROUND:
        HookRegistry.register(hook.TARGET, hook.apply, HookType.AROUND)


def verify() -> None:
    """Raise unless every hook is in force in this process, those of `cpu/` too. SGLang only logs a
    hook that failed."""
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

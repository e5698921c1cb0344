"""Speculative decoding on the CPU: the operators and backends that SGLang's workers lack there.

Owns: the registration of `chain_ops` as the sgl_kernel operators that the CPU branches of
srt/speculative and kernels/ops/speculative call (a compiled library keeps the operators that it
has), the draft attention of `torch_native`, and sampled verification. `host/refused_flags.py`
refuses trees (topk above 1).
Why: SGLang's speculation on the CPU needs a compiled sgl_kernel, and cannot draft on torch_native.
Upstream: in speculative/draft_utils.py, DraftBackendFactory._create_backend raises for
torch_native. In speculative/eagle_utils.py, _verify_uses_greedy is True on every CPU, so that a
request with a temperature would silently be greedy. managers/overlap_utils.py gathers with a Triton
kernel; therefore arg_groups/speculative_hook.py has _disable_overlap_schedule_for_cpu.
Remove when: sgl_kernel's CPU build needs no AMX, and the factory knows torch_native.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sglang_longcat.cpu import chain_ops
from sglang_longcat.cpu.mha_draft import TorchMHABackend
from sglang_longcat.cpu.mla_backend import NAME, TorchMLABackend, TorchMLADraftSteps

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

DRAFT_BACKEND = "sglang.srt.speculative.draft_utils.DraftBackendFactory._create_backend"
GREEDY = "sglang.srt.speculative.eagle_utils._verify_uses_greedy"
OVERLAP = "sglang.srt.arg_groups.speculative_hook._disable_overlap_schedule_for_cpu"
GATHER = "sglang.srt.managers.overlap_utils.gather_spec_extras"
TARGETS = (DRAFT_BACKEND, GREEDY, OVERLAP, GATHER)

_TABLE = "Tensor requests, Tensor{} table, Tensor starts, Tensor ends, Tensor{} slots, int width"
_OUT = "Tensor(b!) positions, Tensor(c!) index, Tensor(d!) following, Tensor(e!) sibling"
_OPERATORS: dict[str, tuple[Callable[..., None], str]] = {
    "assign_req_to_token_pool_cpu": (
        chain_ops.assign_req_to_token_pool,
        _TABLE.format("(a!)", ""),
    ),
    "assign_extend_cache_locs_cpu": (
        chain_ops.assign_extend_cache_locs,
        _TABLE.format("", "(a!)"),
    ),
    "assign_draft_cache_locs_contiguous_cpu": (
        chain_ops.assign_draft_cache_locs_contiguous,
        "Tensor requests, Tensor table, Tensor lengths, Tensor(a!) slots, int width, int k, "
        "int steps",
    ),
    "build_tree_kernel_efficient_cpu": (
        chain_ops.build_tree_kernel_efficient,
        f"Tensor parents, Tensor selected, Tensor lengths, Tensor(a!) mask, {_OUT}, int k, "
        "int depth, int window, int mask_mode",
    ),
    "reconstruct_indices_from_tree_mask_cpu": (
        chain_ops.reconstruct_indices_from_tree_mask,
        f"Tensor mask, Tensor lengths, {_OUT}, int requests, int window",
    ),
    "verify_tree_greedy_cpu": (
        chain_ops.verify_tree_greedy,
        "Tensor(a!) predicts, Tensor(b!) accepted, Tensor(c!) counts, Tensor candidates, "
        "Tensor index, Tensor following, Tensor sibling, Tensor choices",
    ),
    "fill_bonus_tokens_cpu": (
        chain_ops.fill_bonus_tokens,
        "Tensor tokens, Tensor counts, Tensor(a!) bonus, int stride",
    ),
    "fill_accept_out_cache_loc_cpu": (
        chain_ops.fill_accept_out_cache_loc,
        "Tensor accepted, Tensor slots, Tensor(a!) taken",
    ),
    "copy_all_layer_kv_cache_cpu": (
        chain_ops.copy_all_layer_kv_cache,
        "Tensor buffers, Tensor strides, Tensor targets, Tensor sources",
    ),
}
_SAMPLING = (
    "tree_speculative_sampling_target_only",
    "top_k_renorm_prob",
    "top_p_renorm_prob",
)
_libraries: list[torch.library.Library] = []  # an operator lives as long as its library


def register() -> str:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.speculative import eagle_utils

    library = torch.library.Library("sgl_kernel", "FRAGMENT")
    for name, (function, arguments) in _OPERATORS.items():
        if not hasattr(torch.ops.sgl_kernel, name):
            library.define(f"{name}({arguments}) -> ()")
            library.impl(name, function, "CPU")
    _libraries.append(library)
    for name in _SAMPLING:  # they are None where SGLang has no kernel
        if getattr(eagle_utils, name) is None:
            setattr(eagle_utils, name, getattr(chain_ops, name))
    HookRegistry.register(DRAFT_BACKEND, _with_torch_native, HookType.AROUND)
    HookRegistry.register(GREEDY, _verifies_greedily, HookType.AROUND)
    HookRegistry.register(OVERLAP, _leave_overlap_alone, HookType.AROUND)
    HookRegistry.register(GATHER, _gather_spec_extras, HookType.AROUND)
    return "speculation: torch, chains"


def _leave_overlap_alone(_original: Callable[..., None], _args: ServerArgs) -> None:
    """Leave the overlap scheduler on: it lacks only the gather below on a CPU, and GPUs run with
    it, so tests should too."""


def _gather_spec_extras(
    _original: Callable[..., Any], indices: torch.Tensor, *buffers: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    """The rows `indices` of each buffer."""
    return tuple(None if buffer is None else buffer[indices] for buffer in buffers)


def _with_torch_native(
    original: Callable[..., Any],
    factory: DraftBackendFactory,
    backend_name: str,
    backend_map: Mapping[str, Any],
    error_template: str,
    stamps_children: bool = False,
) -> Any:
    """Add torch_native to the backends of a draft: with `stamps_children` for the decode steps,
    otherwise for the forward that fills the draft's KV."""
    runner = factory.draft_model_runner
    kind = TorchMLABackend if runner.use_mla_backend else TorchMHABackend

    def torch_native() -> tuple[str, object]:
        if stamps_children:
            steps = factory.speculative_num_steps
            return NAME, TorchMLADraftSteps(runner, steps=steps, kind=kind)
        return NAME, kind(runner)

    entries = {**backend_map, NAME: torch_native}
    return original(factory, backend_name, entries, error_template, stamps_children)


def _verifies_greedily(
    _original: Callable[..., bool], *, is_all_greedy: bool, **_platform: bool
) -> bool:
    return is_all_greedy

"""The entry point that SGLang calls in every process it starts: check the host, then register.

SGLang logs a plugin's exceptions and goes on with its in-tree model. So every error here leaves as
SystemExit, which SGLang does not catch. Owns the order of registration and the activation line.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sglang_longcat import __version__, env, metrics

logger = logging.getLogger(__name__)
_cpu_parts: list[str] = []  # what this process runs on a CPU; empty on a GPU


def register() -> None:
    """Idempotent; touches no GPU."""
    try:
        if env.disabled():
            logger.warning("sglang-longcat: LONGCAT_DISABLE=1, serving with SGLang's own model")
        else:
            _register()
    except Exception as error:
        raise SystemExit(f"sglang-longcat could not register: {error!r}") from error


def _register() -> None:
    from sglang_longcat import cpu
    from sglang_longcat.cpu import environment
    from sglang_longcat.host import contract, model_registry

    environment.require()
    with model_registry.other_models_later():
        contract.require()

    from sglang.srt.utils import is_cpu

    from longcat_kernels import dispatch
    from sglang_longcat import hooks, tool_parser
    from sglang_longcat.host import hf_config, memory_share, precompile, refuse_early
    from sglang_longcat.kv_cache import registration
    from sglang_longcat.tool_parser import reasoning_tokens

    dispatch.allow_pdl(env.pdl())
    hf_config.register()
    model_registry.register()
    hooks.register_all()
    memory_share.register()
    precompile.register()
    refuse_early.register()
    tool_parser.register()
    reasoning_tokens.register()
    if is_cpu():
        _cpu_parts[:] = cpu.install()
    else:
        registration.register()


def log_activation(operations: Sequence[str]) -> None:
    """The one INFO line that proves the plugin is active. The model calls it, because SGLang loads
    plugins before it configures logging.

    operations: those that run with our kernels on a GPU (`layers.operations.enabled_operations`).
    """
    on = "; ".join(_cpu_parts) or f"our kernels for {', '.join(operations)}"
    logger.info(
        "sglang-longcat %s is active: LongCat-Flash-Lite on %s. LONGCAT_DISABLE=1 switches it off.",
        __version__,
        on,
    )
    metrics.publish_info({"version": __version__, "implementation": on})

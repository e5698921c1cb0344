"""The entry point that SGLang calls in every process it starts: check the host, then register.

SGLang logs a plugin's exceptions and carries on with its in-tree model, so whatever goes wrong here
leaves as SystemExit, which it does not catch.
"""

from __future__ import annotations

import logging

from sglang_longcat import __version__, env, metrics

logger = logging.getLogger(__name__)
_ON_A_GPU = "n-gram ids, routing and identity experts: triton"
_implementations: list[str] = []  # of this process, for the activation line


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
    from sglang_longcat.host import contract

    environment.require()
    contract.require()

    from sglang.srt.models.registry import ModelRegistry
    from sglang.srt.utils import is_cpu

    from longcat_kernels import dispatch
    from sglang_longcat import hooks, tool_parser
    from sglang_longcat.host import hf_config, memory_share, refuse_ray

    dispatch.allow_pdl(env.pdl())
    hf_config.register()
    ModelRegistry.register("sglang_longcat.models", overwrite=True, strict=True)
    hooks.register_all()
    memory_share.register()
    refuse_ray.register()
    tool_parser.register()
    _implementations[:] = cpu.install() if is_cpu() else [_ON_A_GPU]


def log_activation() -> None:
    """The one INFO line that proves the plugin is active. Called by the model, since SGLang loads
    plugins before it configures logging."""
    logger.info(
        "sglang-longcat %s is active: LongCat-Flash-Lite on %s. LONGCAT_DISABLE=1 switches it off.",
        __version__,
        "; ".join(_implementations),
    )
    metrics.publish_info({"version": __version__, "implementation": "; ".join(_implementations)})

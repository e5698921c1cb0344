"""Refuse flags where SGLang resolves them, before it starts a process.

Why here too, when the model refuses the same: some flags lead past our class (`--use-ray`,
`--model-impl transformers`, ModelOpt), and there its checks do not exist. For others SGLang's own
check comes between, with a message that gives no way out. The process that resolves the flags loads
plugins, so a step in SGLang's registry of resolution steps reads our tables, for this model only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_longcat.host import hf_config, resolution
from sglang_longcat.host.refused_flags import (
    refuse_contradictions,
    refuse_unsupported,
    unsupported_flags,
)

if TYPE_CHECKING:
    from sglang.srt.server_args import ServerArgs

STEP = "handle_missing_default_values"  # from here on the model's directory is known


def refuse(server_args: ServerArgs, previous: Callable[[ServerArgs], None]) -> None:
    """Runs SGLang's step. Raises UnsupportedFlag if LongCat-Flash-Lite would be served with one."""
    from sglang.srt.arg_groups.overrides import model_config_of

    previous(server_args)
    # In this order, so that SGLang reads the config.json of other models when it always does.
    by_format = server_args.quantization is not None and _names_longcat(server_args.model_path)
    if not (by_format or unsupported_flags(server_args)):
        return
    config = model_config_of(server_args).hf_config
    if hf_config.is_served_by_us(config):
        refuse_unsupported(server_args)
        refuse_contradictions(server_args, hf_config.quant_method(config))


def _names_longcat(model_path: str) -> bool:
    """Whether config.json, read as text, does. Of a model that is not on this disk yet,
    --quantization is refused when its class is built."""
    file = Path(model_path) / "config.json"
    return file.is_file() and "longcat" in file.read_text(errors="replace").lower()


def register() -> None:
    resolution.wrap(STEP, refuse)

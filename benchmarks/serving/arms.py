"""The arms of a serving benchmark: one recipe, served by ours, ours without drafts, or in-tree.

Owns: the flags and variables that differ from the recipe's, and the model class that must answer.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine import SIMULATED
from launch import serve

OURS, IN_TREE = "sglang_longcat.models.longcat_flash", "sglang.srt.models.longcat_flash"
DRAFTS = "speculative-"  # how the flags of speculation begin
Flags = dict[str, Any]  # of a recipe: names without the two dashes


@dataclass(frozen=True)
class Arm:
    """`module`: the module of the model classes that must answer, or its prefix."""

    module: str
    drafts: bool

    @property
    def is_in_tree(self) -> bool:
        return self.module == IN_TREE

    def flags(self, recipe: Flags) -> Flags:
        """The recipe's, without those of other arms. The model's directory is not among them."""
        dropped = {"model-path"}
        if not self.drafts:
            dropped |= {name for name in recipe if name.startswith(DRAFTS)}
        if self.is_in_tree:  # the parser is the plugin's
            dropped |= {name for name in recipe if recipe[name] == "longcat"}
        kept = {name: value for name, value in recipe.items() if name not in dropped}
        if self.is_in_tree and kept.get("device") != "cpu":
            # SGLang's own choice leaves 10 GiB unused, which would halve in-tree's KV cache in bf16
            kept.setdefault("mem-fraction-static", 0.95)
        return kept

    def environment(self, path: Path, flags: Flags) -> dict[str, str]:
        """The caller's variables win over the recipe's, as in `launch/serve.sh`. In-tree has its
        tables on the GPU, whatever these say."""
        on_cpu, tp = flags.get("device") == "cpu", int(flags.get("tp-size", 1))
        drafts = any(name.startswith(DRAFTS) for name in flags)
        return {
            **serve.recipe_env(path),
            **serve.server_env(on_cpu=on_cpu, tp=tp),
            "LONGCAT_DUMMY_ROUTING": "1",
            "SGLANG_PLUGINS": "longcat,longcat_dummy_routing",
            **({"LONGCAT_DISABLE": "1"} if self.is_in_tree else {}),
            **(SIMULATED if drafts else {}),
        }


ARMS = {
    "ours": Arm(OURS, drafts=True),
    "no-drafts": Arm(OURS, drafts=False),
    "in-tree": Arm(IN_TREE, drafts=False),
}


def added(environment: dict[str, str]) -> dict[str, str]:
    """What `environment` has beyond the caller's, for the report."""
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}

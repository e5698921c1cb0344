"""The description of a 4-bit checkpoint.

A quantised weight w[o, i] is scale[o, g] * (q[o, i] - zero[o, g]) with g = i // group_size, q and
zero in 0..15, and eight values of q in an int32. Owns: these terms, and the rules that say which
modules are quantised.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

BITS = 4
PER_WORD = 32 // BITS  # values in an int32
MIDDLE = 1 << (BITS - 1)  # the zero point of symmetric quantisation
GROUP_SIZES = (32, 64, 128)  # SGLang's Marlin kernels (MARLIN_SUPPORTED_GROUP_SIZES)

Packing = Literal["gptq", "awq", "compressed-tensors"]


class FormatError(ValueError):
    """The weights are stored in a format that is not served."""


class Rule(NamedTuple):
    """Decides for modules by their dotted names. Sets, since a config.json may list thousands."""

    quantised: bool
    pattern: str = ""  # a regular expression for the whole name
    names: frozenset[str] = frozenset()  # the whole name
    endings: frozenset[str] = frozenset()  # what the name ends with, from a dot on

    def check(self) -> None:
        """FormatError for a pattern that is no regular expression."""
        _compiled(self.pattern)

    def decides(self, module: str) -> bool:
        if module in self.names or (self.pattern and _compiled(self.pattern).fullmatch(module)):
            return True
        return bool(self.endings) and not self.endings.isdisjoint(_endings(module))


@dataclass(frozen=True)
class PackedFormat:
    """How the linear layers of a 4-bit checkpoint are stored."""

    method: str  # quant_method in config.json
    packing: Packing  # which names, shapes and order of values
    group_size: int  # inputs that share a scale
    symmetric: bool  # every zero point is MIDDLE
    zero_offset: int = 0  # zero point minus what is stored: 1 in GPTQ's first version
    rules: tuple[Rule, ...] = ()  # the first one that matches decides
    default: bool = True  # whether a module is quantised for which no rule decides

    def quantises(self, module: str) -> bool:
        """Whether the linear layer `module` ("model.layers.0.mlps.1.up_proj") is quantised."""
        for rule in self.rules:
            if rule.decides(module):
                return rule.quantised
        return self.default

    @property
    def bits_per_weight(self) -> float:
        """With a 16-bit scale, and the zero point where there is one."""
        return BITS + (16 + (not self.symmetric) * BITS) / self.group_size

    def __str__(self) -> str:
        zeros = "symmetric" if self.symmetric else "with zero points"
        return f"{self.method}, {BITS} bits, groups of {self.group_size}, {zeros}"


def _endings(module: str) -> list[str]:
    """ "a.b.c" -> ["a.b.c", "b.c", "c"]"""
    parts = module.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise FormatError(
            f"quantization_config has the module pattern {pattern!r}, which is no regular "
            f"expression ({error}). Fix config.json."
        ) from error

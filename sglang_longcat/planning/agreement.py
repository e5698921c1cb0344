"""Flags of `estimate` and `doctor` that contradict the checkpoint's config.json.

Owns: these errors. Each names the flag, and what the checkpoint has instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sglang_longcat.config import LongcatConfig

# Values of --dtype, and what LongcatConfig.weight_format calls them.
FORMATS = {"bf16": "bf16", "fp8": "block-fp8", "int4": "int4"}


def check(
    config: LongcatConfig,
    *,
    context: int | None = None,
    ranks: Iterable[int] = (),
    dtypes: Iterable[str] = (),
    context_flag: str = "--context",
) -> None:
    """Raises ValueError with one line per contradiction. context: tokens of `context_flag`; ranks:
    sizes that --tp gives; dtypes: values of --dtype."""
    lines = [
        *_context(config, context, context_flag),
        *_ranks(config, ranks),
        *_dtypes(config, dtypes),
    ]
    if lines:
        raise ValueError("\n".join(lines))


def _context(config: LongcatConfig, context: int | None, flag: str) -> Iterator[str]:
    if context and context > config.max_position_embeddings:
        yield (
            f"{flag} {context}, but config.json says max_position_embeddings "
            f"{config.max_position_embeddings}: expected at most that many tokens."
        )


def _ranks(config: LongcatConfig, ranks: Iterable[int]) -> Iterator[str]:
    heads = config.num_attention_heads
    for tp in ranks:
        if heads % tp:
            yield (
                f"--tp {tp}, but config.json says num_attention_heads {heads}: expected a size "
                "that divides them."
            )


def _dtypes(config: LongcatConfig, dtypes: Iterable[str]) -> Iterator[str]:
    stored = config.weight_format
    for dtype in dtypes:
        if FORMATS[dtype] != stored:
            yield (
                f"--dtype {dtype}, but quantization_config in config.json says {stored}: leave "
                "--dtype out, or leave --model-path out to compare formats of the published model."
            )

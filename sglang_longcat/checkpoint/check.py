"""Compares a checkpoint directory with the layout table before anything is loaded.

Owns: which files make up a checkpoint, and the error that lists every difference. This file reads
headers only (11 thousand entries take well under a second); the loader reads the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sglang_longcat.checkpoint.headers import CheckpointError, Entry, read_header, read_index
from sglang_longcat.checkpoint.layout import (
    FP8_DTYPE,
    MTP_PREFIX,
    Shapes,
    as_stored,
    draft_tensors,
    expected_tensors,
    optional_tensors,
    require_uniform,
    tensor_dtype,
    with_draft_as_stored,
)
from sglang_longcat.checkpoint.packed_layout import VALUES
from sglang_longcat.config import LongcatConfig

__all__ = ["CheckpointError", "check_checkpoint", "check_draft", "stored_names"]

_LISTED = 20  # lines per kind of defect: enough to see the pattern, short enough to read


@dataclass
class _Contents:
    """What the files of a directory contain, and what is wrong with them."""

    entries: dict[str, Entry] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)  # tensors whose file cannot be read, by the index
    missing_files: list[str] = field(default_factory=list)
    damaged_files: list[str] = field(default_factory=list)


def check_checkpoint(path: str | Path, config: LongcatConfig) -> None:
    """Raise CheckpointError unless the files under `path` hold exactly the tensors of `config`.

    Accepts shards with an index, or `*.safetensors` without one. The MTP tensors must be complete
    or absent. With block FP8, each quantised weight must be FP8 and have its scale, and no other
    tensor may. In 4 bits each quantised weight must have its packed tensors, and no other may.
    """
    contents = _read_all(Path(path))
    config = with_draft_as_stored(config, contents.entries)
    mtp = any(name.startswith(MTP_PREFIX) for name in [*contents.entries, *contents.lost])
    _compare(Path(path), contents, expected_tensors(config, mtp=mtp), config)


def check_draft(path: str | Path, config: LongcatConfig) -> None:
    """Raise CheckpointError unless the files under `path` hold the 17 tensors of the MTP layer.

    This check ignores other tensors, and files that contain none of the 17: a draft checkpoint may
    be a directory with the MTP tensors alone.
    """
    contents = _read_all(Path(path))
    contents.entries = {n: e for n, e in contents.entries.items() if n.startswith(MTP_PREFIX)}
    contents.lost = {name for name in contents.lost if name.startswith(MTP_PREFIX)}
    if not contents.entries and not contents.lost:
        raise CheckpointError(
            f"{path} holds no {MTP_PREFIX}* tensors; speculative decoding drafts with them. Use a "
            "checkpoint with the MTP layer, name one with --speculative-draft-model-path, or leave "
            "--speculative-algorithm out."
        )
    if not contents.lost:
        contents.missing_files, contents.damaged_files = [], []
    config = with_draft_as_stored(config, contents.entries)
    _compare(Path(path), contents, draft_tensors(config), config)


def stored_names(path: str | Path) -> set[str]:
    """The names of the tensors in those safetensors files under `path` that can be read. Empty for
    a name on a model hub."""
    if not any(Path(path).glob("*.safetensors*")):
        return set()
    return set(_read_all(Path(path)).entries)


def _compare(path: Path, contents: _Contents, shapes: Shapes, config: LongcatConfig) -> None:
    require_uniform(shapes, config.quant)
    expected, entries = as_stored(shapes, config.quant), contents.entries
    allowed = expected | optional_tensors(shapes, config.quant)
    defects = {
        "missing shard files": contents.missing_files,
        "damaged shard files": contents.damaged_files,
        "missing tensors": _missing(expected, contents),
        "unexpected tensors": [f"{n} {entries[n]}" for n in sorted(entries.keys() - allowed)],
        "misshaped tensors": _misshaped(allowed, entries, config),
    }
    _raise_if_any(path, defects, _advice(entries, config))


def _advice(entries: Mapping[str, Entry], config: LongcatConfig) -> str:
    """What to do, by what the files hold instead."""
    if config.quant is None and any(name.rpartition(".")[2] in VALUES for name in entries):
        return (
            "The files hold 4-bit weights, and config.json has no quantization_config: put there "
            "what quantize_config.json or quant_config.json says."
        )
    if entries and not any(name.startswith("model.") for name in entries):
        return "Every name of this model but lm_head starts with 'model.': rename the tensors."
    return "Download the named files again, or fix config.json."


def _read_all(path: Path) -> _Contents:
    contents = _Contents()
    index = read_index(path)
    for name in sorted(set(index.values())) or sorted(f.name for f in path.glob("*.safetensors")):
        try:
            contents.entries |= read_header(path / name)
            continue
        except FileNotFoundError:
            contents.missing_files.append(name)
        except CheckpointError as error:
            contents.damaged_files.append(str(error))
        contents.lost |= {tensor for tensor, file in index.items() if file == name}
    if not (contents.entries or contents.missing_files or contents.damaged_files):
        raise CheckpointError(
            f"{path} holds no *.safetensors file; expected a LongCat-Flash-Lite checkpoint. "
            "Check the path and that the download finished."
        )
    return contents


def _missing(expected: Shapes, contents: _Contents) -> list[str]:
    absent = expected.keys() - contents.entries - contents.lost
    return [f"{name} {list(expected[name])}" for name in sorted(absent)]


def _misshaped(expected: Shapes, entries: Mapping[str, Entry], config: LongcatConfig) -> list[str]:
    lines = []
    for name in sorted(expected.keys() & entries):
        want, entry = tensor_dtype(name, config.quant), entries[name]
        if entry.shape != expected[name] or not compatible(entry.dtype, want):
            lines.append(f"{name}: expected {list(expected[name])} {want}, found {entry}")
    return lines


def compatible(dtype: str, want: str) -> bool:
    """Whether a tensor of the one safetensors dtype may be read where the other is expected.
    Unquantised tensors and the scales of 4-bit weights may be stored in any wider float type: the
    loader casts them."""
    if want.startswith("I"):
        return dtype == want or (want, dtype) == ("I64", "I32")
    return dtype == want if want == FP8_DTYPE else dtype in {"F32", "F16", "BF16"}


def _raise_if_any(path: Path, defects: Mapping[str, list[str]], advice: str) -> None:
    sections = [_section(kind, lines) for kind, lines in defects.items() if lines]
    if sections:
        raise CheckpointError(
            f"The checkpoint {path} does not match its config.json:\n"
            + "\n".join(sections)
            + f"\n{advice}"
        )


def _section(kind: str, lines: Iterable[str]) -> str:
    lines = list(lines)
    shown = [f"  {kind} ({len(lines)}):", *(f"    {line}" for line in lines[:_LISTED])]
    if len(lines) > _LISTED:
        shown.append(f"    ... and {len(lines) - _LISTED} more")
    return "\n".join(shown)

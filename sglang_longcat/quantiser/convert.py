"""The whole checkpoint: checks before it starts, files one after the other, and one rename.

Owns: that no OUT exists which loads before everything is written. The files lie in OUT.partial,
which gets its config.json last and is renamed to OUT.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_longcat.checkpoint.check import check_checkpoint, stored_names
from sglang_longcat.checkpoint.headers import INDEX_NAME, read_index
from sglang_longcat.checkpoint.layout import MTP_PREFIX, tensor_dtype
from sglang_longcat.config import LongcatConfig, QuantConfig
from sglang_longcat.planning.sizing import WIDTH
from sglang_longcat.quantiser import rounding
from sglang_longcat.quantiser.selection import Options, QuantiseError, Selection, select
from sglang_longcat.quantiser.shards import Step, Worker

_CONFIG = "config.json"
_MARK = ".sglang-longcat-quantize"  # in a directory that the tool may delete
_SPARE = 1.01  # of the disk: headers, the index and the other files


@dataclass
class Report:
    """What was done."""

    selection: Selection
    bytes_read: int
    bytes_written: int = 0
    errors: dict[str, float] = field(default_factory=dict)  # relative, by layer


@dataclass(frozen=True)
class Job:
    """A checked request: see `prepare`."""

    source: Path
    out: Path
    files: tuple[str, ...]
    selection: Selection

    @property
    def partial(self) -> Path:
        return self.out.with_name(f"{self.out.name}.partial")

    @property
    def bytes_read(self) -> int:
        return sum((self.source / name).stat().st_size for name in self.files)


def prepare(source: Path, out: Path, options: Options) -> Job:
    """Checks everything that can be checked without reading weights. Raises FileExistsError,
    CheckpointError, ConfigError, QuantiseError."""
    out = out.resolve()  # the rename at the end would replace a link
    if out.is_mount():
        raise QuantiseError(f"{out} is a mount point; expected a directory in it, or elsewhere.")
    if source.resolve() in out.parents:
        raise QuantiseError(f"{out} lies in {source}; expected a directory outside of the source.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"{out} exists and is not an empty directory. Name another, or remove it."
        )
    config = LongcatConfig.from_dir(source)
    if config.quant is not None:
        raise QuantiseError(
            f"{source} is quantised already ({config.quant}); expected the unquantised checkpoint."
        )
    check_checkpoint(source, config)
    mtp = any(name.startswith(MTP_PREFIX) for name in stored_names(source))
    if options.mtp and not mtp:
        raise QuantiseError(f"{source} has no MTP layer. Leave --mtp out.")
    selection = select(config, options, mtp=mtp)
    _require_space(out, _bytes_of(selection))
    rounding.require_library()
    files = set(read_index(source).values()) or {file.name for file in source.glob("*.safetensors")}
    return Job(source, out, tuple(sorted(files)), selection)


def convert(job: Job, *, threads: int, step: Step, started: Callable[[str], None]) -> Report:
    """Writes OUT. `started` gets the name of each file, `step` the bytes that are done. Raises what
    `rounding` and the file system raise, and then leaves no OUT."""
    report = Report(job.selection, job.bytes_read)
    worker = Worker(job.selection, threads, step)
    with _at_once(job) as partial:
        places: dict[str, str] = {}
        for name in job.files:
            started(name)
            names, errors = worker.convert(job.source / name, partial / name)
            places |= dict.fromkeys(names, name)
            report.errors |= errors
            report.bytes_written += (partial / name).stat().st_size
        _copy_others(job, partial)
        _write_index(partial, places, report.bytes_written)
        _write_config(job, partial)
        check_checkpoint(partial, LongcatConfig.from_dir(partial))
    return report


@contextlib.contextmanager
def _at_once(job: Job) -> Iterator[Path]:
    """The partial directory: renamed to OUT at the end, removed after an error or Ctrl-C."""
    mark = job.partial / _MARK
    if job.partial.exists() and not mark.exists():
        raise FileExistsError(f"{job.partial} is not of this tool, and is needed. Move it away.")
    shutil.rmtree(job.partial, ignore_errors=True)  # of a run that was killed
    job.partial.mkdir(parents=True)
    mark.touch()
    try:
        yield job.partial
        mark.unlink()
        job.partial.rename(job.out)
    except BaseException:
        shutil.rmtree(job.partial, ignore_errors=True)
        raise


def _bytes_of(selection: Selection) -> int:
    quant = QuantConfig(selection.stored.method, None, (), selection.stored)
    return sum(
        WIDTH[tensor_dtype(name, quant)] * math.prod(shape)
        for name, shape in selection.shapes.items()
    )


def _require_space(out: Path, needed: int) -> None:
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    free, needed = shutil.disk_usage(existing).free, int(needed * _SPARE)
    if free < needed:
        raise QuantiseError(
            f"{existing} has {free / 1e9:.1f} GB free; the 4-bit checkpoint needs "
            f"{needed / 1e9:.1f}. Free some, or name an OUT on another disk."
        )


def _copy_others(job: Job, partial: Path) -> None:
    """Tokenizer, chat template, code and documents: all files beside the weights."""
    for file in job.source.iterdir():
        if file.is_file() and ".safetensors" not in file.name and file.name != _CONFIG:
            shutil.copyfile(file, partial / file.name)


def _write_index(partial: Path, places: dict[str, str], total: int) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    _write_json(partial / INDEX_NAME, index)


def _write_config(job: Job, partial: Path) -> None:
    config = json.loads((job.source / _CONFIG).read_text())
    _write_json(partial / _CONFIG, config | {"quantization_config": job.selection.config})


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")

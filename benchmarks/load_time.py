"""Time to load a checkpoint's n-gram tables into host memory, and to read its files alone.

    python -m benchmarks.load_time CHECKPOINT [--write]

It loads the tables as a server does: SGLang iterates over the shards, and our threads copy blocks
of rows. Other tensors are copied and dropped. It measures with the files out of the page cache
("cold") and in it ("warm"). "files alone" is the time of `cat`. The memory is not pinned: a server
touches and pins it before, and logs how long that takes. --write first makes a checkpoint with one
layer of the published width and 3.75 GiB of tables, 4.3 GiB in all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from sglang_longcat.checkpoint.reader import NGRAM
from sglang_longcat.config import LongcatConfig
from sglang_longcat.ngram.tables import NgramTables
from sglang_longcat.testing.tiny import TinyOptions, write_tiny

WRITTEN = TinyOptions(
    layers=1, hidden=3072, heads=8, vocab=32768, ratio=20, shard_mb=1024, mtp=False
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--write", action="store_true", help="make one there first")
    args = parser.parse_args(argv)
    if args.write:
        write_tiny(args.checkpoint, WRITTEN)
    files = sorted(args.checkpoint.glob("*.safetensors"))
    if not files:
        parser.error(f"no safetensors in {args.checkpoint}; expected a checkpoint, or --write.")
    print(f"{sum(file.stat().st_size for file in files) / 2**30:.2f} GiB in {len(files)} files")
    for cache in ("cold", "warm"):
        for what, seconds in (("files alone", alone), ("checkpoint", load)):
            if cache == "cold":
                forget(files)
            print(f"{cache} {what}: {seconds(args.checkpoint, files):.2f} s", flush=True)


def forget(files: Sequence[Path]) -> None:
    """Remove `files` from the page cache."""
    os.sync()
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def alone(checkpoint: Path, files: Sequence[Path]) -> float:
    begin = time.perf_counter()
    with subprocess.Popen(["cat", *files], stdout=subprocess.PIPE) as reading:
        assert reading.stdout is not None
        while reading.stdout.read(16 << 20):
            pass
    return time.perf_counter() - begin


def load(checkpoint: Path, files: Sequence[Path]) -> float:
    from sglang.srt.model_loader.weight_utils import safetensors_weights_iterator

    ngram = LongcatConfig.from_dir(checkpoint).ngram
    assert ngram is not None
    tables = NgramTables(
        ngram.rows,
        slice(0, ngram.width),
        dtype=torch.bfloat16,
        table_dtype="bf16",
        where="host",
        device=torch.device("cpu"),
        show_progress=False,
    )
    begin = time.perf_counter()
    for name, tensor in safetensors_weights_iterator([str(file) for file in files]):
        match = NGRAM.match(name)
        if match and match[1] == "embedders":
            tables.load(int(match[2]), tensor)
        else:
            tensor.clone()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()

"""FP8 rows of the KV pool to bf16 rows, as a prefill behind a cached prefix needs them.

`reference` is plain torch on the same device: an index and several elementwise kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import lite
from longcat_kernels.kv_expand import expand, reference, workloads

WIDTHS: dict[str, Any] = {"rank": lite.KV_LORA, "rope": lite.ROPE}


def cases() -> list[Case]:
    return [Case(f"T {n}", n, workloads.bytes_moved(n), flops=0) for n in workloads.TOKENS]


def ours(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        pool, slots = workloads.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: expand(pool, slots, **WIDTHS)

    return Implementation("ours", prepare)


def plain(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        pool, slots = workloads.make_inputs(case.tokens, seed=copy, device=device)
        out = expand(pool, slots, **WIDTHS)
        return lambda: reference.expand(pool, slots, lite.KV_LORA, out)

    return Implementation("reference", prepare, cuda_only=False)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    return run("kv_expand", cases(), [ours(options.device), plain(options.device)], options)


if __name__ == "__main__":
    main()

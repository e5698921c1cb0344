"""bf16 rows into FP8 rows of the KV pool, as a prefill stores its tokens. It rounds the latents in
place, which makes no difference to the next call.

`reference` is plain torch on the same device: several elementwise kernels and an index.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.kv_store import reference, round_and_store, workloads


def cases() -> list[Case]:
    return [Case(f"T {n}", n, workloads.bytes_moved(n), flops=0) for n in workloads.TOKENS]


def ours(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        inputs = workloads.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: round_and_store(*inputs)

    return Implementation("ours", prepare)


def plain(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        inputs = workloads.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: reference.round_and_store(*inputs)

    return Implementation("reference", prepare, cuda_only=False)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    return run("kv_store", cases(), [ours(options.device), plain(options.device)], options)


if __name__ == "__main__":
    main()

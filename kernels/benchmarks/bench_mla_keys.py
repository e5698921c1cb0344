"""Joined keys of a prefill: ours, SGLang's Triton kernel, and torch's concatenation."""

from __future__ import annotations

from collections.abc import Sequence

from timing import Call, Case, Implementation, Row, parse, run

from longcat_kernels.mla_keys import join_keys, reference
from longcat_kernels.mla_keys import workloads as lite


def cases() -> list[Case]:
    return [Case(f"T {tokens}", tokens, lite.bytes_moved(tokens), 0) for tokens in lite.TOKENS]


def ours(device: str, *, plain: bool) -> Implementation:
    op = reference.join_keys if plain else join_keys

    def prepare(case: Case, copy: int) -> Call:
        inputs = lite.make_inputs(case.tokens, seed=copy, device=device)
        return lambda: op(*inputs)

    return Implementation("reference" if plain else "ours", prepare, cuda_only=not plain)


def in_tree(device: str) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        from sglang.kernels.ops.attention.mla_qk_prep import concat_and_cast_mha_k_triton

        k_nope, k_pe = lite.make_inputs(case.tokens, seed=copy, device=device)
        out = join_keys(k_nope, k_pe)
        return lambda: concat_and_cast_mha_k_triton(out, k_nope, k_pe)

    return Implementation("sglang", prepare)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [ours(options.device, plain=False), ours(options.device, plain=True)]
    if not options.no_sglang:
        implementations.append(in_tree(options.device))
    return run("mla_keys", cases(), implementations, options)


if __name__ == "__main__":
    main()

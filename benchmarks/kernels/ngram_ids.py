"""N-gram ids: append to the ring and hash, for decode, 4-token verify and prefill batches.

The `sglang` column is SGLang's token-table update and its id kernel. SGLang's model first turns
lengths into offsets on the GPU (one cumsum), which is not timed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import lite, ngram
from longcat_kernels.ngram import reference, workloads

PREFILLS = {"prefill 1x8192": [8192], "prefill 8x1024": [1024] * 8, "prefill 1x512": [512]}
# SGLang's table is requests x context x 4 bytes; a shorter context keeps 4096 requests in memory.
SGLANG_CONTEXT = 8192


def shapes() -> dict[str, list[int]]:
    """Tokens of each request, by label."""
    decodes = {f"decode {batch}": [1] * batch for batch in workloads.DECODE_BATCHES}
    width = workloads.VERIFY_WIDTH
    verifies = {f"verify {b}x{width}": [width] * b for b in workloads.DECODE_BATCHES if b <= 256}
    return {**decodes, **verifies, **PREFILLS}


def cases() -> list[Case]:
    return [
        Case(name, sum(n), workloads.bytes_moved(sum(n), len(n)), workloads.flops(sum(n)))
        for name, n in shapes().items()
    ]


def ours(device: str, *, plain: bool) -> Implementation:
    """The public function, which takes Triton on a GPU, or the reference."""
    op = reference if plain else ngram
    params = workloads.lite_params(device)

    def prepare(case: Case, copy: int) -> Call:
        batch = workloads.make_inputs(shapes()[case.shape], seed=copy, device=device)
        if case.shape in PREFILLS:
            return lambda: op.extend_ids(batch.prefill, batch.ring, params)
        return lambda: op.window_ids(batch.window, batch.ring, params)

    return Implementation("reference" if plain else "ours", prepare, cuda_only=not plain)


def sglang(device: str) -> Implementation:
    params, k = workloads.lite_params(device), lite.NGRAM_TABLES // (lite.NGRAM_N - 1)
    weights = [[pow(lite.VOCAB, j, m) for j in range(lite.NGRAM_N)] for m in lite.NGRAM_ROWS]
    shared = {
        "ne_n": lite.NGRAM_N,
        "ne_k": k,
        "ne_weights": _int32(weights, device).view(lite.NGRAM_N - 1, k, lite.NGRAM_N),
        "ne_mods": params.moduli.view(lite.NGRAM_N - 1, k).int(),
        "exclusive_ne_embedder_size_sums": _int32([*params.offsets, lite.NGRAM_TOTAL_ROWS], device),
        "eos_token_id": lite.EOS[0],
    }

    def prepare(case: Case, copy: int) -> Call:
        from sglang.kernels.ops.embeddings import ngram_embedding as op

        lengths = shapes()[case.shape]
        batch = workloads.make_inputs(lengths, seed=copy, device=device)
        size = (len(lengths) + 1, SGLANG_CONTEXT + max(lengths))
        tokens = batch.tokens.int()
        where = {
            "tokens": tokens,
            "ne_token_table": torch.zeros(size, dtype=torch.int32, device=device),
            "row_indices": batch.slots,
            "column_starts": (batch.positions[batch.starts] % SGLANG_CONTEXT).int(),
        }
        req_lens = batch.lengths.int()
        sums = torch.cat((batch.starts, batch.starts[-1:] + lengths[-1])).int()
        ids = torch.empty((len(tokens), lite.NGRAM_TABLES), dtype=torch.int32, device=device)

        def call() -> None:
            op.update_token_table(req_lens=req_lens, **where)
            op.compute_n_gram_ids(exclusive_req_len_sums=sums, n_gram_ids=ids, **shared, **where)

        return call

    return Implementation("sglang", prepare)


def _int32(values: Sequence[object], device: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    implementations = [ours(options.device, plain=False), ours(options.device, plain=True)]
    if not options.no_sglang:
        implementations.append(sglang(options.device))
    return run("ngram_ids", cases(), implementations, options)


if __name__ == "__main__":
    main()

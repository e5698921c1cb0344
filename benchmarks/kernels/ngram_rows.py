"""N-gram rows: append, hash and gather in one launch, from GPU memory and from pinned host memory.

At the model's size (58.5 GiB of bf16 rows) unless --rows says less; `bytes` counts rows read and
written once. `unfused` is our ids kernel and torch's embedding on a GPU table. Host rows come over
PCIe: compare with the link (64 GB/s for Gen5 x16), not with `of_peak`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import ngram_ids, ngram_rows
from longcat_kernels.ngram_ids import HashTable, make_hash_table
from longcat_kernels.ngram_ids import workloads as lite
from longcat_kernels.ngram_rows import workloads as work
from longcat_kernels.row_table import SCALE_BYTES, RowTable

PREFILLS = {f"prefill 1x{work.PREFILL_TOKENS}": [work.PREFILL_TOKENS], "prefill 8x512": [512] * 8}


def shapes() -> dict[str, list[int]]:
    decodes = {f"decode {batch}": [1] * batch for batch in work.DECODE_BATCHES}
    return {**decodes, "verify 30x4": [4] * 30, **PREFILLS}


def cases(rows: RowTable) -> list[Case]:
    return [
        Case(name, sum(n), work.bytes_moved(sum(n), rows), lite.flops(sum(n)))
        for name, n in shapes().items()
    ]


def implementation(
    name: str, device: str, table: HashTable, rows: RowTable, *, fused: bool
) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        batch = lite.make_inputs(shapes()[case.shape], seed=copy, device=device)
        args = [batch.tokens, batch.positions, batch.slots]
        is_prefill = case.shape in PREFILLS
        if is_prefill:
            args += [batch.starts, batch.lengths]
        if fused:
            gather = ngram_rows.extend_rows if is_prefill else ngram_rows.window_rows
            return lambda: gather(*args, batch.ring, table, rows)
        ids = ngram_ids.extend_ids if is_prefill else ngram_ids.window_ids
        return lambda: ngram_rows.reference.gather(ids(*args, batch.ring, table), rows)

    return Implementation(name, prepare, cuda_only=device == "cuda")


def storage(rows: int, where: str, kind: str) -> RowTable:
    """Zeros: what is read does not change how fast."""
    width = work.COLUMNS + (SCALE_BYTES if kind == "fp8" else 0)
    dtype = torch.uint8 if kind == "fp8" else torch.bfloat16
    if where == "host":
        from sglang_longcat.ngram.host_memory import HostMemory

        memory = HostMemory(rows * width * dtype.itemsize, pin=True)
        data = memory.bytes.view(dtype).view(rows, width)
        data.memory = memory  # type: ignore[attr-defined]  # lives as long as the tensor
    else:
        data = torch.zeros((rows, width), dtype=dtype, device=where)
    return RowTable(data, work.COLUMNS, torch.bfloat16)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    device = options.device
    ratio = lite.RATIO if device == "cuda" else 1 / 64
    rows = tuple(int(ratio * lite.VOCAB) + 2 * i + 1 for i in range(lite.TABLES))
    table = make_hash_table(
        vocab_size=lite.VOCAB, rows=rows, orders=lite.ORDERS, eos=lite.EOS, device=device
    )
    found: list[Row] = []
    for where in ("cuda", "host") if device == "cuda" else ("cpu",):
        for kind in ("bf16", "fp8"):
            one = storage(sum(rows), where, kind)
            fused = implementation(f"{where} {kind}", device, table, one, fused=True)
            both = [fused]
            if where == "cuda" and kind == "bf16":
                both.append(implementation("unfused", device, table, one, fused=False))
            found += run(f"ngram_rows_{where}_{kind}", cases(one), both, options)
            del one, fused, both
            if device == "cuda":
                torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    main()

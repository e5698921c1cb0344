"""N-gram rows: append, hash and gather in one launch, from GPU memory and from pinned host memory.

On a GPU the tables have the model's size (58.5 GiB of bf16 rows); `bytes` counts rows read and
written once. `unfused` is our ids kernel and torch's embedding on a GPU table. Host rows come over
PCIe: compare them with the link (64 GB/s for Gen5 x16), not with `of_peak`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import lite, ngram
from longcat_kernels.ngram import HashParams, workloads
from longcat_kernels.ngram.reference import gather
from longcat_kernels.row_layout import Format, row_width
from longcat_kernels.row_table import RowTable

FORMATS: dict[str, Format] = {"bf16": "plain", "fp8": "fp8", "int4": "int4"}
PREFILLS = {
    f"prefill 1x{workloads.PREFILL_TOKENS}": [workloads.PREFILL_TOKENS],
    "prefill 8x512": [512] * 8,
}


def shapes() -> dict[str, list[int]]:
    decodes = {f"decode {batch}": [1] * batch for batch in workloads.ROW_DECODE_BATCHES}
    return {**decodes, "verify 30x4": [4] * 30, **PREFILLS}


def cases(rows: RowTable) -> list[Case]:
    return [
        Case(name, sum(n), workloads.row_bytes_moved(sum(n), rows), workloads.flops(sum(n)))
        for name, n in shapes().items()
    ]


def implementation(
    name: str, device: str, params: HashParams, rows: RowTable, *, fused: bool
) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        batch = workloads.make_inputs(shapes()[case.shape], seed=copy, device=device)
        if case.shape in PREFILLS:
            if fused:
                return lambda: ngram.extend_rows(batch.prefill, batch.ring, params, rows)
            return lambda: gather(ngram.extend_ids(batch.prefill, batch.ring, params), rows)
        if fused:
            return lambda: ngram.window_rows(batch.window, batch.ring, params, rows)
        return lambda: gather(ngram.window_ids(batch.window, batch.ring, params), rows)

    return Implementation(name, prepare, cuda_only=device == "cuda")


def storage(rows: int, where: str, kind: str) -> RowTable:
    """Rows of zeros: the values do not change the time."""
    format = FORMATS[kind]
    width = row_width(lite.NGRAM_COLUMNS, format)
    dtype = torch.bfloat16 if format == "plain" else torch.uint8
    if where == "host":
        from sglang_longcat.ngram.host_memory import HostMemory

        memory = HostMemory(rows * width * dtype.itemsize, pin=True)
        data = memory.bytes.view(dtype).view(rows, width)
        data.memory = memory  # type: ignore[attr-defined]  # lives as long as the tensor
    else:
        data = torch.zeros((rows, width), dtype=dtype, device=where)
    return RowTable(data, lite.NGRAM_COLUMNS, torch.bfloat16, format)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    device = options.device
    ratio = lite.NGRAM_RATIO if device == "cuda" else 1 / 64
    rows = tuple(int(ratio * lite.VOCAB) + 2 * i + 1 for i in range(lite.NGRAM_TABLES))
    params = workloads.lite_params(device, rows=rows)
    measured: list[Row] = []
    for where in ("cuda", "host") if device == "cuda" else ("cpu",):
        for kind in FORMATS:
            table = storage(sum(rows), where, kind)
            fused = implementation(f"{where} {kind}", device, params, table, fused=True)
            both = [fused]
            if where == "cuda" and kind == "bf16":
                both.append(implementation("unfused", device, params, table, fused=False))
            measured += run(f"ngram_rows_{where}_{kind}", cases(table), both, options)
            del table, fused, both
            if device == "cuda":
                torch.cuda.empty_cache()
    return measured


if __name__ == "__main__":
    main()

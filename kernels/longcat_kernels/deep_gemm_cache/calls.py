"""Calls DeepGEMM as SGLang does, with operands that nobody reads or writes.

Only for the child process, in which `no_gpu.c` stands in for CUDA.
"""

from __future__ import annotations

from collections.abc import Callable

import deep_gemm
import torch

from longcat_kernels.deep_gemm_cache import Gemm
from longcat_kernels.fp8_layout import ALIGNED, GROUP

FP8 = torch.float8_e4m3fn


def caller(gemm: Gemm) -> Callable[[int], None]:
    """Returns the GEMM as a function of its rows (of one group's, if masked)."""
    return {"dense": _dense, "masked": _masked, "contiguous": _contiguous}[gemm.kind](gemm)


def _empty(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(size, dtype=dtype, device="cuda")


def _weight(gemm: Gemm, *groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = -(-gemm.n // GROUP), -(-gemm.k // GROUP)
    return (
        _empty(*groups, gemm.n, gemm.k, dtype=FP8),
        _empty(*groups, *blocks, dtype=torch.float32),
    )


def _inputs(gemm: Gemm) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """Rows quantised by group of 128, with scales in the layout that TMA reads (`fp8_layout`)."""
    most, groups = max(gemm.rows), gemm.k // GROUP
    q = _empty(most, gemm.k, dtype=FP8)
    scales = _empty(groups * (most + ALIGNED), dtype=torch.float32)

    def take(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        padded = -(-rows // ALIGNED) * ALIGNED
        return q[:rows], scales.as_strided((rows, groups), (1, padded))

    return take


def _dense(gemm: Gemm) -> Callable[[int], None]:
    inputs, weight = _inputs(gemm), _weight(gemm)
    out = _empty(max(gemm.rows), gemm.n, dtype=torch.bfloat16)
    return lambda rows: deep_gemm.fp8_gemm_nt(inputs(rows), weight, out[:rows])


def _contiguous(gemm: Gemm) -> Callable[[int], None]:
    inputs, weight = _inputs(gemm), _weight(gemm, gemm.groups)
    out = _empty(max(gemm.rows), gemm.n, dtype=torch.bfloat16)
    group_of_row = _empty(max(gemm.rows), dtype=torch.int32)

    def call(rows: int) -> None:
        deep_gemm.set_mk_alignment_for_contiguous_layout(gemm.alignment)
        deep_gemm.m_grouped_fp8_gemm_nt_contiguous(
            inputs(rows), weight, out[:rows], group_of_row[:rows]
        )

    return call


def _masked(gemm: Gemm) -> Callable[[int], None]:
    """SGLang hands over scales that DeepGEMM transposes itself, with one more kernel."""
    capacity, weight = 256, _weight(gemm, gemm.groups)
    q = _empty(gemm.groups, capacity, gemm.k, dtype=FP8)
    scales = _empty(gemm.groups, capacity, gemm.k // GROUP, dtype=torch.float32)
    out = _empty(gemm.groups, capacity, gemm.n, dtype=torch.bfloat16)
    counts = _empty(gemm.groups, dtype=torch.int32)
    return lambda rows: deep_gemm.fp8_m_grouped_gemm_nt_masked(
        (q, scales), weight, out, counts, rows
    )

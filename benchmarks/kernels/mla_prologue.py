"""MLA's prologue: norms, rope and the KV row in one launch; the absorbed query in another.

The `sglang` columns are SGLang's launches for the same work: two norms and the store of the row in
one table; one product and one rope, which turns queries and key together, in the other. Compare the
sums of the two tables. In captured steps SGLang runs the norms on two streams, which hides the
shorter one. `product` is torch's product with our rope, as above `FUSED_TOKENS` tokens.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels import lite
from longcat_kernels.fp8_layout import GROUP
from longcat_kernels.mla_prologue import (
    absorb_query,
    norm_and_store,
    norm_quantise_and_store,
    reference,
    workloads,
)
from longcat_kernels.mla_prologue.workloads import Inputs, make_inputs


def stored_cases(**fp8: bool) -> list[Case]:
    """fp8: which parts are, as `bytes_stored` has them."""
    return [Case(f"T {n}", n, workloads.bytes_stored(n, **fp8), flops=0) for n in workloads.BATCHES]


def absorbed_cases() -> list[Case]:
    return [
        Case(f"T {n}", n, workloads.bytes_absorbed(n), workloads.flops_absorbed(n))
        for n in workloads.BATCHES
    ]


def implementation(
    name: str,
    device: str,
    call: Callable[[Inputs], object],
    *,
    cuda_only: bool = True,
    fp8_rows: bool = False,
) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        inputs = make_inputs(case.tokens, seed=copy, device=device, fp8_rows=fp8_rows)
        return lambda: call(inputs)

    return Implementation(name, prepare, cuda_only=cuda_only)


def store(inputs: Inputs, op: Callable[..., object] = norm_and_store) -> object:
    return op(
        inputs.qkv,
        inputs.q_weight,
        inputs.kv_weight,
        eps=lite.EPS,
        positions=inputs.positions,
        cos_sin=inputs.cos_sin,
        slots=inputs.slots,
        kv_buffer=inputs.kv_buffer,
    )


def store_plainly(inputs: Inputs, op: Callable[..., object] = reference.norm_and_store) -> object:
    weights = inputs.q_weight, inputs.kv_weight, lite.EPS
    where = inputs.positions, inputs.cos_sin, inputs.slots, inputs.kv_buffer
    return op(inputs.qkv, *weights, *where, False)


def stored_fp8(options: argparse.Namespace) -> list[Implementation]:
    """With the query latent quantised for a block-FP8 second projection."""
    device = options.device
    own = [
        implementation("ours", device, lambda inputs: store(inputs, norm_quantise_and_store)),
        implementation(
            "reference",
            device,
            lambda inputs: store_plainly(inputs, reference.norm_quantise_and_store),
            cuda_only=False,
        ),
    ]
    if options.no_sglang:
        return own
    # Our kernel with SGLang's quantisation after it, and SGLang's kernels alone.
    return [
        *own,
        implementation("apart", device, lambda inputs: quantise_in_sglang(store(inputs))),
        implementation(
            "sglang", device, lambda inputs: quantise_in_sglang(store_in_sglang(inputs))
        ),
    ]


def stored_fp8_rows(device: str) -> list[Implementation]:
    """FP8 rows of the KV pool, with and without the quantised query latent."""
    return [
        implementation("ours", device, store, fp8_rows=True),
        implementation(
            "ours+query", device, partial(store, op=norm_quantise_and_store), fp8_rows=True
        ),
        implementation("reference", device, store_plainly, cuda_only=False, fp8_rows=True),
    ]


def quantise_in_sglang(q_lora: Any) -> object:
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8

    return sglang_per_token_group_quant_fp8(
        q_lora, GROUP, column_major_scales=True, scale_tma_aligned=True
    )


def store_in_sglang(inputs: Inputs) -> object:
    from sgl_kernel import rmsnorm
    from sglang.kernels.ops.kvcache.mla_buffer import set_mla_kv_buffer_triton

    q, latent, key = inputs.qkv.split((lite.Q_LORA, lite.KV_LORA, lite.ROPE), dim=1)
    q_lora = rmsnorm(q, inputs.q_weight, lite.EPS)
    latent = rmsnorm(latent, inputs.kv_weight, lite.EPS)
    set_mla_kv_buffer_triton(inputs.kv_buffer, inputs.slots, latent[:, None], key[:, None])
    return q_lora


def absorb(inputs: Inputs) -> object:
    return absorb_query(inputs.q, inputs.w_kc, positions=inputs.positions, cos_sin=inputs.cos_sin)


def absorb_always(*, fused: bool) -> Callable[[Inputs], object]:
    """Our kernel, or torch's product, for any number of tokens."""

    def call(inputs: Inputs) -> object:
        from longcat_kernels.mla_prologue import launch

        args = inputs.q, inputs.w_kc, inputs.positions, inputs.cos_sin, False
        return launch.absorb_query(*args, fused=fused)

    return call


def absorb_plainly(inputs: Inputs) -> object:
    return reference.absorb_query(inputs.q, inputs.w_kc, inputs.positions, inputs.cos_sin, False)


def absorb_in_sglang(inputs: Inputs) -> object:
    from sglang.kernels.ops.attention.rope import apply_rope_with_cos_sin_cache_inplace

    key = inputs.qkv[:, None, lite.Q_LORA + lite.KV_LORA :]
    absorbed = torch.bmm(inputs.q[..., : lite.NOPE].transpose(0, 1), inputs.w_kc)
    apply_rope_with_cos_sin_cache_inplace(
        inputs.q[..., lite.NOPE :], key, inputs.cos_sin, inputs.positions, is_neox=False
    )
    return absorbed


def main(argv: Sequence[str] | None = None) -> list[Row]:
    options = parse(__doc__, argv)
    device = options.device
    stored = [
        implementation("ours", device, store),
        implementation("reference", device, store_plainly, cuda_only=False),
    ]
    absorbed = [
        implementation("ours", device, absorb),
        implementation("fused", device, absorb_always(fused=True)),
        implementation("product", device, absorb_always(fused=False)),
        implementation("reference", device, absorb_plainly, cuda_only=False),
    ]
    if not options.no_sglang:
        stored.append(implementation("sglang", device, store_in_sglang))
        absorbed.append(implementation("sglang", device, absorb_in_sglang))
    rows = run("mla_prologue_store", stored_cases(), stored, options)
    rows += run("mla_prologue_store_fp8", stored_cases(fp8=True), stored_fp8(options), options)
    fp8_rows = stored_cases(fp8_rows=True)
    rows += run("mla_prologue_store_fp8_rows", fp8_rows, stored_fp8_rows(device), options)
    return rows + run("mla_prologue_absorb", absorbed_cases(), absorbed, options)


if __name__ == "__main__":
    main()

"""MLA's prologue: norms, rope and the KV row in one launch; the absorbed query in another.

The `sglang` columns are its own launches for the same: two norms and the row's store; one product
and one rope, which turns queries and key alike. Compare sums of the two tables. It runs the norms
on two streams where there are captured steps, which hides the shorter one. `product` is torch's
product with our rope, which is what `FUSED_TOKENS` switches to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.kernels.timing import Call, Case, Implementation, Row, parse, run
from longcat_kernels.fp8_inputs import GROUP
from longcat_kernels.mla_prologue import (
    absorb_query,
    norm_and_store,
    norm_quantise_and_store,
    reference,
)
from longcat_kernels.mla_prologue import workloads as lite
from longcat_kernels.mla_prologue.workloads import Inputs, make_inputs


def stored_cases(*, fp8: bool = False) -> list[Case]:
    return [Case(f"T {n}", n, lite.bytes_stored(n, fp8=fp8), flops=0) for n in lite.BATCHES]


def absorbed_cases() -> list[Case]:
    return [Case(f"T {n}", n, lite.bytes_absorbed(n), lite.flops_absorbed(n)) for n in lite.BATCHES]


def implementation(
    name: str, device: str, call: Callable[[Inputs], object], *, cuda_only: bool = True
) -> Implementation:
    def prepare(case: Case, copy: int) -> Call:
        one = make_inputs(case.tokens, seed=copy, device=device)
        return lambda: call(one)

    return Implementation(name, prepare, cuda_only=cuda_only)


def store(one: Inputs, op: Callable[..., object] = norm_and_store) -> object:
    return op(
        one.qkv,
        one.q_weight,
        one.kv_weight,
        eps=lite.EPS,
        positions=one.positions,
        cos_sin=one.cos_sin,
        slots=one.slots,
        kv_buffer=one.kv_buffer,
    )


def store_plainly(one: Inputs, op: Callable[..., object] = reference.norm_and_store) -> object:
    weights = one.q_weight, one.kv_weight, lite.EPS
    where = one.positions, one.cos_sin, one.slots, one.kv_buffer
    return op(one.qkv, *weights, *where, False)


def stored_fp8(options: argparse.Namespace) -> list[Implementation]:
    """With the query latent quantised for a block-FP8 second projection."""
    device = options.device
    found = [
        implementation("ours", device, lambda one: store(one, norm_quantise_and_store)),
        implementation(
            "reference",
            device,
            lambda one: store_plainly(one, reference.norm_quantise_and_store),
            cuda_only=False,
        ),
    ]
    if options.no_sglang:
        return found
    # Our kernel with SGLang's quantisation after it, and SGLang's kernels alone.
    return [
        *found,
        implementation("apart", device, lambda one: quantise_in_sglang(store(one))),
        implementation("sglang", device, lambda one: quantise_in_sglang(store_in_sglang(one))),
    ]


def quantise_in_sglang(q_lora: Any) -> object:
    from sglang.kernels.ops.quantization.fp8_kernel import sglang_per_token_group_quant_fp8

    return sglang_per_token_group_quant_fp8(
        q_lora, GROUP, column_major_scales=True, scale_tma_aligned=True
    )


def store_in_sglang(one: Inputs) -> object:
    from sgl_kernel import rmsnorm
    from sglang.kernels.ops.kvcache.mla_buffer import set_mla_kv_buffer_triton

    q, latent, key = one.qkv.split((lite.Q_LORA, lite.KV_LORA, lite.ROPE), dim=1)
    q_lora = rmsnorm(q, one.q_weight, lite.EPS)
    latent = rmsnorm(latent, one.kv_weight, lite.EPS)
    set_mla_kv_buffer_triton(one.kv_buffer, one.slots, latent[:, None], key[:, None])
    return q_lora


def absorb(one: Inputs) -> object:
    return absorb_query(one.q, one.w_kc, positions=one.positions, cos_sin=one.cos_sin)


def absorb_always(*, fused: bool) -> Callable[[Inputs], object]:
    """Our kernel, or torch's product, at any number of tokens."""

    def call(one: Inputs) -> object:
        from longcat_kernels.mla_prologue import _triton

        args = one.q, one.w_kc, one.positions, one.cos_sin, False
        return _triton.absorb_query(*args, fused=fused)

    return call


def absorb_plainly(one: Inputs) -> object:
    return reference.absorb_query(one.q, one.w_kc, one.positions, one.cos_sin, False)


def absorb_in_sglang(one: Inputs) -> object:
    from sglang.kernels.ops.attention.rope import apply_rope_with_cos_sin_cache_inplace

    key = one.qkv[:, None, lite.Q_LORA + lite.KV_LORA :]
    absorbed = torch.bmm(one.q[..., : lite.NOPE].transpose(0, 1), one.w_kc)
    apply_rope_with_cos_sin_cache_inplace(
        one.q[..., lite.NOPE :], key, one.cos_sin, one.positions, is_neox=False
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
    return rows + run("mla_prologue_absorb", absorbed_cases(), absorbed, options)


if __name__ == "__main__":
    main()

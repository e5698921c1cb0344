"""What absorbed multi-head latent attention does before it attends, in two launches.

`norm_and_store` runs between the first projection and the second, `absorb_query` between the second
and attention. `norm_quantise_and_store` also quantises q_lora for a block-FP8 second projection
(`fp8_layout` has the formula and the layout):

    q_lora[t]       = q_weight * q_a[t] / rms(q_a[t])                  qkv = [q_a, latent, k_pe]
    kv_buffer[slot] = [kv_weight * latent[t] / rms(latent[t]), rope(k_pe[t])]    bf16, or FP8 rows
    query[t, h]     = [q[t, h, :N] @ w_kc[h], rope(q[t, h, N:])]

rms(x) = sqrt(mean(x^2) + eps). rope turns pair j of a vector of P elements by the angle whose
cosine and sine are cos_sin[position, j] and cos_sin[position, P/2 + j]; pairs are (2j, 2j+1), or
with `neox` (j, P/2 + j). Arithmetic is fp32, and each element written is rounded once, to the
tensors' dtype. Separate kernels round at the same places, so results differ from theirs by an ulp
at most (by more where the sums of rope or of the product cancel: by an fp32 rounding of the terms).
FP8 rows of the KV pool are `kv_rows.pack` of the bf16 row, bit for bit.
"""

from __future__ import annotations

import torch

from longcat_kernels import kv_rows
from longcat_kernels.dispatch import use_triton
from longcat_kernels.fp8_layout import Pair
from longcat_kernels.mla_prologue import reference

# With more tokens torch's batched product and a launch for rope are faster, because each block of
# tokens reads all of w_kc (4 MiB at 32 heads). Fused and apart on an H200: 4.1 and 8.4 us for 64
# tokens, 5.3 and 8.9 for 128, 8.6 and 10.9 for 256, 14.9 and 13.5 for 512
# (`mla_prologue_absorb.csv`).
FUSED_TOKENS = 256


def norm_and_store(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    kv_weight: torch.Tensor,
    *,
    eps: float,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    slots: torch.Tensor,
    kv_buffer: torch.Tensor,
    neox: bool = False,
) -> torch.Tensor:
    """Both latent norms, rope of the key, and the token's row in the KV pool. Returns q_lora.

    qkv: [T, Q + R + P], rows contiguous; q_weight: [Q]; kv_weight: [R]; positions, slots: [T]
    int32/int64; cos_sin: [positions, P], rows contiguous; kv_buffer: [S, 1, R + P] of qkv's dtype,
    or FP8 rows of `kv_rows`, [S, 1, bytes] uint8, if qkv is bf16. Returns [T, Q]. The row of
    `kv_pool.PADDING_SLOT` is not written; no other slot may occur twice. ValueError if the sizes do
    not fit.
    """
    check_norm_and_store(qkv, q_weight, kv_weight, cos_sin, kv_buffer)
    args = qkv, q_weight, kv_weight, eps, positions, cos_sin, slots, kv_buffer, neox
    if use_triton(qkv):
        from longcat_kernels.mla_prologue import launch

        return launch.norm_and_store(*args)
    return reference.norm_and_store(*args)


def norm_quantise_and_store(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    kv_weight: torch.Tensor,
    *,
    eps: float,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    slots: torch.Tensor,
    kv_buffer: torch.Tensor,
    neox: bool = False,
) -> Pair:
    """`norm_and_store`, with q_lora rounded to qkv's dtype and then quantised: returns [T, Q]
    float8_e4m3fn and its scales, [T, Q / 128] fp32. ValueError also if Q is not a multiple of 128.
    """
    check_norm_and_store(qkv, q_weight, kv_weight, cos_sin, kv_buffer)
    args = qkv, q_weight, kv_weight, eps, positions, cos_sin, slots, kv_buffer, neox
    if use_triton(qkv):
        from longcat_kernels.mla_prologue import launch

        return launch.norm_quantise_and_store(*args)
    return reference.norm_quantise_and_store(*args)


def check_norm_and_store(
    qkv: torch.Tensor,
    q_weight: torch.Tensor,
    kv_weight: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_buffer: torch.Tensor,
) -> None:
    q, latent, rope = q_weight.shape[0], kv_weight.shape[0], cos_sin.shape[1]
    fp8 = kv_rows.is_fp8(kv_buffer)
    width = kv_rows.row_width(latent, rope, fp8=fp8)
    if qkv.shape[1] != q + latent + rope or kv_buffer.shape[1:] != (1, width):
        raise ValueError(
            f"qkv {tuple(qkv.shape)}, kv_buffer {tuple(kv_buffer.shape)}: expected {q} + {latent} "
            f"+ {rope} columns and rows of [1, {width}], by the norm weights and cos_sin. "
            "Pass the first projection's whole output and the layer's own KV buffer."
        )
    if qkv.dtype != (torch.bfloat16 if fp8 else kv_buffer.dtype):
        raise ValueError(
            f"kv_buffer is {kv_buffer.dtype}, qkv {qkv.dtype}: expected one dtype, or bf16 for FP8 "
            "rows (uint8). Leave any other KV cache to the attention backend."
        )


def absorb_query(
    q: torch.Tensor,
    w_kc: torch.Tensor,
    *,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    neox: bool = False,
) -> torch.Tensor:
    """Each head's query in the latent space, followed by its rotated part.

    q: [T, H, N + P], last dimension contiguous; w_kc: [H, N, R], any strides; positions: [T]
    int32/int64; cos_sin: [positions, P]. Returns [T, H, R + P], contiguous, of q's dtype.
    """
    if q.shape[1:] != (w_kc.shape[0], w_kc.shape[1] + cos_sin.shape[1]):
        raise ValueError(
            f"q {tuple(q.shape)}, w_kc {tuple(w_kc.shape)}: expected the same heads, and "
            f"{w_kc.shape[1]} + {cos_sin.shape[1]} columns of q."
        )
    if use_triton(q):
        from longcat_kernels.mla_prologue import launch

        fused = q.shape[0] <= FUSED_TOKENS
        return launch.absorb_query(q, w_kc, positions, cos_sin, neox, fused=fused)
    return reference.absorb_query(q, w_kc, positions, cos_sin, neox)

"""SGLang's pool of latents, with FP8 rows: four scales for each token, and the rope part in bf16.

A layer's buffer is [slots, 1, bytes] uint8. Everything that moves whole rows is SGLang's and works
as it is: retraction to the host and back, accepted drafts, transfers between workers. `dtype` is
the type of the values that readers get, which is the model's. Who stores latents gets them back
rounded, so all steps attend to the same values.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

from longcat_kernels import kv_rows
from longcat_kernels.kv_expand import expand
from longcat_kernels.kv_store import round_and_store


class Fp8RowPool(MLATokenToKVPool):
    """Arguments are those of SGLang's class. `dtype`: of values, not of what is stored."""

    def _create_buffers(self) -> None:
        self.store_dtype = torch.uint8
        self.kv_cache_dim = kv_rows.row_width(self.kv_lora_rank, self.qk_rope_head_dim, fp8=True)
        self.allocation_label = f"FP8 rows of {self.kv_cache_dim} bytes:"  # in SGLang's log line
        super()._create_buffers()

    def rows(self, layer_id: int) -> torch.Tensor:
        """The layer's rows, [slots, 1, bytes], for kernels that read FP8 rows."""
        buffer: torch.Tensor = self.kv_buffer[layer_id - self.start_layer]
        return buffer

    def _write_mla_kv_buffer(
        self,
        dst_buffer: torch.Tensor,
        loc: torch.Tensor,
        cache_k_nope: torch.Tensor,
        cache_k_rope: torch.Tensor,
    ) -> None:
        """SGLang's writers end here. `cache_k_nope` becomes what the rows stand for, because a
        prefill makes K and V of it afterwards (forward_mha.py, forward_normal_prepare). Padded
        batches of attention DP have more rows than slots."""
        slots = loc.shape[0]
        latents, ropes = cache_k_nope.flatten(1)[:slots], cache_k_rope.flatten(1)[:slots]
        round_and_store(dst_buffer, loc, latents, ropes)

    def set_kv_buffer(
        self,
        layer: Any,
        loc_info: Any,
        cache_k: torch.Tensor,
        cache_v: torch.Tensor | None,
        layer_id_override: int | None = None,
    ) -> None:
        """cache_k: [T, 1, rank + rope]. The values are its first part, so cache_v says nothing."""
        nope, rope = cache_k.split((self.kv_lora_rank, self.qk_rope_head_dim), dim=-1)
        self.set_mla_kv_buffer(layer, loc_info, nope, rope, layer_id_override)

    def get_mla_kv_buffer(
        self, layer: Any, loc: torch.Tensor, dst_dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The values of the rows `loc`: latents [T, 1, rank] and rope parts [T, 1, rope]. Latents
        are contiguous, because the projections that read them may quantise them."""
        widths = {"rank": self.kv_lora_rank, "rope": self.qk_rope_head_dim}
        values = expand(self.rows(layer.layer_id), loc, **widths).to(dst_dtype or self.dtype)
        latents, ropes = values[:, None].split((self.kv_lora_rank, self.qk_rope_head_dim), dim=-1)
        return latents.contiguous(), ropes

    def get_key_buffer(self, layer_id: int) -> NoReturn:
        raise _no_values(layer_id)

    def get_value_buffer(self, layer_id: int) -> NoReturn:
        raise _no_values(layer_id)


def rows_of(pool: Any, layer_id: int) -> torch.Tensor:
    """The layer's rows of any pool of latents, for readers of both kinds: values, or bytes."""
    rows = pool.rows if isinstance(pool, Fp8RowPool) else pool.get_key_buffer
    buffer: torch.Tensor = rows(layer_id)
    return buffer


def _no_values(layer_id: int) -> RuntimeError:
    """Whoever asks for a buffer of values would compute with bytes, or convert the whole pool."""
    return RuntimeError(
        f"layer {layer_id} of the KV cache has FP8 rows, and something in SGLang asked for its "
        "buffer of values. Leave --kv-cache-dtype out, and report the flags of this server."
    )

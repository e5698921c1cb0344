"""The KV cache in FP8 rows (`--kv-cache-dtype fp8_e4m3`).

- `pool`: SGLang's pool of latents, whose rows are bytes.
- `fa3`: SGLang's fa3 backend, which attends to such rows with our kernels.
- `registration`: who gets that backend.

Owns: how rows get into the pool and out of it. SGLang's layers and backends see values of the
model's type, never bytes. The bytes of a row are `longcat_kernels/kv_rows.py`'s. The hooks
`kv_cache_dtype`, `kv_pool_class` and `kv_row_width` give this pool to a server; `fp8_draft_backend`
gives the backend to its draft.
"""

"""Features of SGLang that this model's forward does not have."""

from __future__ import annotations

from sglang_longcat.host.refusals.row import on_gpu_only, only, switch

ROWS = (
    switch("--is-embedding", "the model generates text only"),
    switch("--enable-return-aux-hidden-states", "the model hands out its last hidden states only"),
    switch("--enable-return-indexer-topk", "the model has no indexer"),
    # Layers hand values on as attributes of tensors (docs/architecture.md), which a traced graph
    # loses.
    switch("--enable-torch-compile", "the layers cannot be traced", "leave it out"),
    # The router's scores must be fp32: in TF32 they keep 10 bits, and other experts are chosen.
    switch("--enable-tf32-matmul", "the router's product must be computed in full fp32"),
    on_gpu_only("--enable-memory-saver"),
    only("--kv-canary", ("none",), "it does not know the KV cache of multi-head latent attention"),
    only("--rl-on-policy-target", (None,), "not tested, it matches kernels of other models"),
)

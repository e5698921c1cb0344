"""Flags that load, keep or round the weights in another way than the model's own reader."""

from __future__ import annotations

from sglang_longcat.host.refusals.row import Refusal, above, only, switch
from sglang_longcat.requests.fields import STREAMED

_STREAMED = (*STREAMED, "dummy")  # dummy loads none
_UNREAD = (
    "the N-gram tables are no parameters of the model, and only safetensors that pass through the "
    "model's own reader fill them"
)
_METHODS = (None, "fp8", "unquant")
_UNKNOWN_METHOD = "of quantised checkpoints only block FP8 is read, and only it is tested"
_NOT_OFFLOADED = "no layer of this model would be offloaded"
_TABLES_CAN_BE = "leave it out; LONGCAT_NGRAM_TABLES=host keeps the N-gram tables in host memory"

ROWS = (
    # With another implementation our class does not exist. Seen only by `refuse_early`.
    only(
        "--model-impl",
        ("auto", "sglang"),
        "another model class would serve, and no other has the N-gram embedding",
    ),
    only("--load-format", _STREAMED, _UNREAD, "use 'auto' and the published safetensors"),
    only("--speculative-draft-load-format", (None, *_STREAMED), _UNREAD),
    only("--weight-cache-mode", ("off",), f"its daemon hands on parameters only: {_UNREAD}"),
    only("--quantization", _METHODS, _UNKNOWN_METHOD, "serve the published bf16 or FP8 checkpoint"),
    only(
        "--speculative-draft-model-quantization",
        _METHODS,
        _UNKNOWN_METHOD,
        "leave it out: config.json says what is quantised",
    ),
    only("--modelopt-quant", (None,), f"loads the model with Transformers. And {_UNKNOWN_METHOD}"),
    switch("--quantize-and-serve", f"loads the model with Transformers. And {_UNKNOWN_METHOD}"),
    # SGLang wraps layers for both in make_layers, which this model does not call.
    above("--cpu-offload-gb", 0, _NOT_OFFLOADED, _TABLES_CAN_BE),
    above("--offload-group-size", 0, _NOT_OFFLOADED, _TABLES_CAN_BE),
    # SGLang keeps one adapter per layer and module name. Here a layer has two attentions and two
    # MLPs, which would share it, and the N-gram embedding has no adapter at all.
    Refusal(
        flag="--enable-lora, --lora-paths, --lora-target-modules",
        is_refused=lambda args: bool(
            args.enable_lora or args.lora_paths or args.lora_target_modules
        ),
        reason="LoRA is not implemented, neither on embed_tokens (the N-gram embedding) nor on "
        "double layers",
        remedy="merge it into the weights",
    ),
)

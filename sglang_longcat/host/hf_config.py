"""The config class that SGLang parses a LongCat checkpoint's config.json with.

A subclass of SGLang's own. For LongCat-Flash-Lite it keeps the n-gram sizes, counts layers by
`num_layers` (the published file also has num_hidden_layers = 28, its attention blocks), and
switches SGLang's in-tree token table off, since our N-gram cache replaces it. It does not change
other LongCat configs. `config.py` reads the sizes from it.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.configs import LongcatFlashConfig

from sglang_longcat.config import is_lite, read_quant
from sglang_longcat.quantisation import formats

PUBLISHED_MODEL_TYPE = "longcat_flash_ngram"
_NGRAM_KEYS = ("ngram_vocab_size_ratio", "emb_neighbor_num", "emb_split_num")
_ALIASES = ("oe_vocab_size_ratio", "oe_neighbor_num", "oe_split_num")


class LongcatConfigForSGLang(LongcatFlashConfig):
    """`is_longcat_lite` says whether our model class serves it."""

    def __init__(self, **kwargs: Any) -> None:
        lite = is_lite(kwargs)
        if lite and kwargs.get("num_layers") is not None:
            kwargs["num_hidden_layers"] = kwargs["num_layers"]
        super().__init__(**kwargs)
        self.is_longcat_lite = lite
        if not lite:
            return
        # Before SGLang looks at the format: it would say that it does not know the name, or start.
        read_quant(kwargs)
        self.quantization_config = _for_sglang(kwargs.get("quantization_config"))
        for key, alias in zip(_NGRAM_KEYS, _ALIASES, strict=True):
            setattr(self, key, kwargs.get(key) if kwargs.get(key) is not None else kwargs[alias])
        self.moe_topk = kwargs["moe_topk"]
        # For SGLang's ModelConfig. If it is true, SGLang allocates [slots, context] int32 and
        # fills it.
        self.use_ngram_embedding = False

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Replaces the published model_type by the class's own, by which SGLang finds the model.
        With the published one 0.5.23 stops with "not a registered model", and transformers warns.
        """
        config, rest = super().get_config_dict(*args, **kwargs)
        if config.get("model_type") == PUBLISHED_MODEL_TYPE:
            config["model_type"] = cls.model_type
        return config, rest


class PublishedConfig(LongcatConfigForSGLang):
    """The same class under the published config.json's model_type, for transformers' AutoConfig."""

    model_type = PUBLISHED_MODEL_TYPE

    def __init__(self, **kwargs: Any) -> None:  # without it transformers generates another one
        super().__init__(**kwargs)


def _for_sglang(raw: dict[str, Any] | None) -> dict[str, Any] | None:
    """{} is no format; SGLang would look for one of the name ""."""
    return formats.for_sglang(raw) if raw else None


def quant_method(config: object) -> str | None:
    """How the weights are stored: `quant_method` of config.json, or None if unquantised."""
    quant = read_quant({"quantization_config": getattr(config, "quantization_config", None)})
    return None if quant is None else quant.method


def is_served_by_us(config: object) -> bool:
    """Whether SGLang's `hf_config` is of a model that our model class serves."""
    return isinstance(config, LongcatConfigForSGLang) and config.is_longcat_lite


def is_serving_us() -> bool:
    """Whether this process, a scheduler or an HTTP server, serves such a model."""
    from sglang.srt.runtime_context import process_model_config

    return is_served_by_us(process_model_config().hf_config)


def register() -> None:
    from sglang.srt.utils.hf_transformers.common import _CONFIG_REGISTRY
    from transformers import AutoConfig

    _CONFIG_REGISTRY[LongcatFlashConfig.model_type] = LongcatConfigForSGLang
    AutoConfig.register(PUBLISHED_MODEL_TYPE, PublishedConfig, exist_ok=True)

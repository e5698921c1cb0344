"""The draft model of speculative decoding: LongCat-Flash-Lite's multi-token-prediction (MTP) layer.

    x = eh_proj([enorm(embedding of token t+1), hnorm(target's final-normed hidden t)])
    x += mla(input_norm(x));  x += mlp(post_norm(x));  hidden = norm(x)

`hidden` goes to the target's lm_head or a block-FP8 copy of it (`speculation/draft_head.py`), and
into the next draft step. The embedding is dense: the checkpoint's own, or with
LONGCAT_DRAFT_EMBEDDING=word the target's word table. So a draft looks up no n-gram rows and has no
N-gram cache. The class has the name that SGLang gives every LongCat-Flash
draft, so `__new__` hands configs that are not Lite to SGLang's own class.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from sglang.srt.layers.dp_attention import is_dp_attention_enabled
from sglang.srt.layers.layer_boundary import (
    append_stages,
    declare_attn,
    declare_ffn,
    layer_stack,
)
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.models import longcat_flash_nextn as upstream_nextn
from sglang.srt.runtime_context import get_parallel, get_spec, process_model_config
from sglang.srt.speculative.spec_utils import load_token_map
from torch import nn

from sglang_longcat import env
from sglang_longcat.config import LongcatConfig
from sglang_longcat.layers.decoder_layer import mla_attention
from sglang_longcat.layers.linear import LongcatMLP, install_small_linear, reads_pair
from sglang_longcat.layers.norm import StageNorm
from sglang_longcat.layers.packed import prepare_reader, serving_config
from sglang_longcat.speculation.draft_head import (
    DraftLogitsProcessor,
    follow_head,
    make_fp8_head,
)
from sglang_longcat.speculation.draft_reader import DraftReader
from sglang_longcat.speculation.packed_draft import PackedDraft

if TYPE_CHECKING:
    from sglang.srt.configs import LongcatFlashConfig
    from sglang.srt.layers.quantization.base_config import QuantizationConfig

logger = logging.getLogger(__name__)
_LAYER = "model.mtp.layers.0"  # by this prefix the config says which modules are not quantised


class LongcatDraftLayer(upstream_nextn.LongcatFlashDenseDecoderLayer):
    """One MLA and one dense MLP; the forward is SGLang's."""

    def __init__(self, config: LongcatFlashConfig, quant_config: QuantizationConfig | None) -> None:
        nn.Module.__init__(self)
        lite = LongcatConfig.from_dict(config.to_dict())
        self.self_attn = mla_attention(config, lite, quant_config, 0, f"{_LAYER}.self_attn")
        self.self_attn.is_draft = True
        self.mlp = LongcatMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            quant_config=quant_config,
            prefix=f"{_LAYER}.transformer_layer.mlp",
        )
        self.input_layernorm = StageNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.input_layernorm.feed(partial(reads_pair, self.self_attn.fused_qkv_a_proj_with_mqa))
        self.post_attention_layernorm = StageNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm.feed(partial(reads_pair, self.mlp.gate_up_proj))
        latent = {"qkv_latent_func": self.self_attn.prepare_qkv_latent}
        self.attn_boundary, self.ffn_boundary = append_stages(
            (declare_attn(), self.input_layernorm, latent),
            (declare_ffn(), self.post_attention_layernorm),
        )


class LongcatDraftModel(upstream_nextn.LongcatFlashModelNextN):
    """Embedding, eh_proj, the layer and the final norm; the forward is SGLang's."""

    def __init__(self, config: LongcatFlashConfig, quant_config: QuantizationConfig | None) -> None:
        nn.Module.__init__(self)
        self.vocab_size = config.vocab_size
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size, config.hidden_size, use_attn_tp_group=is_dp_attention_enabled()
        )
        self.enorm, self.hnorm, self.final_layernorm = (
            RMSNorm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(3)
        )
        self.eh_proj = ReplicatedLinear(
            2 * config.hidden_size,
            config.hidden_size,
            bias=False,
            quant_config=quant_config,
            prefix=f"{_LAYER}.eh_proj",
        )
        install_small_linear(self.eh_proj)
        with layer_stack():
            self.decoder = LongcatDraftLayer(config, quant_config)


class LongcatFlashForCausalLMNextN(upstream_nextn.LongcatFlashForCausalLMNextN):
    """The class that SGLang instantiates for the draft worker."""

    def __new__(cls, config: LongcatFlashConfig, *args: Any, **kwargs: Any) -> Self:
        if not getattr(config, "is_longcat_lite", False):  # a config class that is not ours
            logger.info("sglang-longcat: not a LongCat-Flash-Lite draft, using SGLang's own model")
            return upstream_nextn.LongcatFlashForCausalLMNextN(config, *args, **kwargs)
        return super().__new__(cls)

    def __init__(
        self, config: LongcatFlashConfig, quant_config: QuantizationConfig | None = None
    ) -> None:
        nn.Module.__init__(self)
        config = _with_target_positions(config)
        self.reader = DraftReader(LongcatConfig.from_dict(config.to_dict()), config._name_or_path)
        self.reader.check_files()
        # The reader applies the MLA norm factors while loading, as for the target.
        self.config = config
        self.config.mla_scale_q_lora = self.config.mla_scale_kv_lora = False
        quant_config = serving_config(self.reader.lite, quant_config)
        unquantised = getattr(config, "disable_quant_module", None) or ()
        self.quant_config = None if "mtp" in unquantised else quant_config
        self.own_embedding = env.draft_embedding() == "mtp"
        self.model = LongcatDraftModel(config, self.quant_config)
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=quant_config,
            use_attn_tp_group=get_parallel().enable_dp_lm_head,
        )
        # With --speculative-token-map every rank has all rows of the (small) head.
        path = get_spec().speculative_token_map
        self.token_map = None if path is None else load_token_map(path)
        rows = len(self.lm_head.weight if self.token_map is None else self.token_map)
        # The draft gets the target's head (and word table) later. SGLang sizes the KV pool before
        # that: the FP8 copy's memory is taken now, and the draft's own 0.8 GB each are given back.
        fp8_head = make_fp8_head(rows, config.hidden_size)
        _free(self.lm_head)
        if not self.own_embedding:
            _free(self.model.embed_tokens)
        self.logits_processor = DraftLogitsProcessor(
            config, fp8_head, skip_all_gather=self.token_map is not None
        )

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        prepare_reader(self.reader, self.lm_head.weight.device)
        tensors = self.reader.feed(self._load_embedding, weights)
        super().load_weights(PackedDraft(self).load(tensors))

    def _load_embedding(self, tensor: torch.Tensor) -> None:
        if self.own_embedding:
            parameter = self.model.embed_tokens.weight
            parameter.weight_loader(parameter, tensor)

    def set_embed_and_head(self, embed: torch.Tensor, head: torch.Tensor) -> None:
        """Called once, with the target's word table and lm_head. With --speculative-token-map
        `head` is a copy of the rows that may be drafted."""
        self.lm_head.weight = _parameter(head)
        if not self.own_embedding:
            self.model.embed_tokens.weight = _parameter(embed)
        fp8_head = self.logits_processor.fp8_head
        if fp8_head is not None:
            fp8_head.fill(head)
        follow_head(self.follow_head)
        source = "model.mtp.embed_tokens" if self.own_embedding else "the target's word table"
        logger.info("Draft embedding: %s. Draft head: %s", source, fp8_head or "the target's")

    def follow_head(self, head: torch.Tensor) -> None:
        """The target's head was loaded again; `head` as in `set_embed_and_head`, but with all
        tokens. Rows of a token map are a copy, which SGLang would leave as they were."""
        if self.token_map is not None:
            self.lm_head.weight.data.copy_(head[self.token_map])
        if self.logits_processor.fp8_head is not None:
            self.logits_processor.fp8_head.fill(self.lm_head.weight)


def _with_target_positions(config: LongcatFlashConfig) -> LongcatFlashConfig:
    """A copy of the config with the target's YaRN and context length. A draft's queries are at the
    target's positions, even if --json-model-override-args or a separate draft checkpoint has other
    values."""
    target, config = process_model_config().hf_config, copy.copy(config)
    for name in ("rope_scaling", "rope_parameters", "rope_theta", "max_position_embeddings"):
        setattr(config, name, getattr(target, name, None))
    return config


def _free(layer: VocabParallelEmbedding) -> None:
    layer.weight = _parameter(layer.weight.new_empty(0))


def _parameter(weight: torch.Tensor) -> nn.Parameter:
    if isinstance(weight, nn.Parameter):
        return weight
    return nn.Parameter(weight, requires_grad=False)


EntryClass = [LongcatFlashForCausalLMNextN]

"""Every field of a generation request, with the values that it may have.

Owns: the tables, by the names of SGLang's GenerateReqInput and SamplingParams. The OpenAI,
Anthropic and Ollama routes fill the same fields. A test fails for a field of SGLang that is in none
of them. Left to others: which prompts are too long (SGLang), and whether sampling values fit each
other (SGLang's SamplingParams.verify).
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_longcat.requests.kinds import (
    INT32,
    INT64,
    VOCAB,
    Absent,
    ByTokenId,
    Flag,
    Integer,
    Json,
    Kind,
    ListOf,
    Number,
    Object,
    OneOf,
    Text,
    TokenIds,
)
from sglang_longcat.requests.patterns import Pattern

MAX_SAMPLES = 1024  # of one prompt: a body of 50 bytes becomes this many requests
_MAX_STOPS = 32  # SGLang's own limit, before which it tokenizes each
_BIAS = 1e9  # bans or forces a token; infinity would make every probability NaN
_TEXT_ONLY = "the model reads text only"
_HASHED = "LongCat-Flash-Lite hashes token ids and takes no embeddings; send input_ids or text"
_INTERNAL = "SGLang's own processes set it"
_NO_INDEXER = "the model's attention has no indexer"
_SCORING = "items that share one prompt would be hashed as one text; send one item a prompt"


@dataclass(frozen=True)
class Field:
    """per_request: a batch may give a list, with one value per request; with `gaps` some of them
    may be null. also: the names under which other routes send it."""

    kind: Kind
    per_request: bool = False
    gaps: bool = False
    also: str = ""


SAMPLING: dict[str, Field] = {
    "max_new_tokens": Field(Integer(0, INT32), also="max_tokens"),
    "min_new_tokens": Field(Integer(0, INT32), also="min_tokens"),
    "n": Field(Integer(1, MAX_SAMPLES)),
    "beam_width": Field(Integer(1, INT32)),
    "temperature": Field(Number(0, 1e30)),
    "top_p": Field(Number(0, 1)),
    "top_k": Field(Integer(-1, INT32)),
    "min_p": Field(Number(0, 1)),
    "frequency_penalty": Field(Number(-2, 2)),
    "presence_penalty": Field(Number(-2, 2)),
    "repetition_penalty": Field(Number(0, 2)),
    "logit_bias": Field(ByTokenId(Number(-_BIAS, _BIAS))),
    "sampling_seed": Field(Integer(-INT64, INT64), also="seed"),
    "stop": Field(ListOf(Text(), longest=_MAX_STOPS, or_one=True), also="stop_sequences"),
    "stop_token_ids": Field(TokenIds()),
    "stop_regex": Field(ListOf(Pattern(), longest=_MAX_STOPS, or_one=True)),
    "json_schema": Field(Text()),
    "regex": Field(Text()),
    "ebnf": Field(Text()),
    "structural_tag": Field(Text()),
    "ignore_eos": Field(Flag()),
    "skip_special_tokens": Field(Flag()),
    "spaces_between_special_tokens": Field(Flag()),
    "no_stop_trim": Field(Flag()),
    "stream_interval": Field(Integer(1, INT32)),
    "custom_params": Field(Json(is_object=True)),
    "watermark": Field(Json()),
    "stop_strs": Field(Absent(_INTERNAL + "; send stop")),
    "stop_regex_strs": Field(Absent(_INTERNAL + "; send stop_regex")),
    "stop_str_max_len": Field(Absent(_INTERNAL)),
    "stop_regex_max_len": Field(Absent(_INTERNAL)),
    "is_normalized": Field(Absent(_INTERNAL)),
    "ebnf_full_assistant": Field(Flag()),
}
_SAMPLING = Object({name: field.kind for name, field in SAMPLING.items()})
_SESSION = Object(
    {
        "id": Text(),
        "rid": Text(),
        "offset": Integer(-INT32, INT32),
        "replace": Flag(),
        "drop_previous_output": Flag(),
    }
)

REQUEST: dict[str, Field] = {
    # the prompt
    "text": Field(Text(), per_request=True, also="prompt"),
    "input_ids": Field(TokenIds(), per_request=True, also="prompt"),
    "input_embeds": Field(Absent(_HASHED)),
    "positional_embed_overrides": Field(Absent(_HASHED)),
    "image_data": Field(Absent(_TEXT_ONLY)),
    "video_data": Field(Absent(_TEXT_ONLY)),
    "audio_data": Field(Absent(_TEXT_ONLY)),
    "mm_hashes": Field(Absent(_TEXT_ONLY)),
    "mm_content_hashes": Field(Absent(_TEXT_ONLY)),
    "modalities": Field(Absent(_TEXT_ONLY)),
    "use_audio_in_video": Field(Flag()),
    "video_config": Field(Json()),
    "images_config": Field(Json()),
    "mm_processor_kwargs": Field(Json()),
    "max_dynamic_patch": Field(Integer(-INT64)),
    "min_dynamic_patch": Field(Integer(-INT64)),
    "image_max_dynamic_patch": Field(Integer(-INT64)),
    "video_max_dynamic_patch": Field(Integer(-INT64)),
    # how to sample
    "sampling_params": Field(_SAMPLING, per_request=True),
    "watermark": Field(Json()),
    "custom_logit_processor": Field(Text(), per_request=True, gaps=True),
    "max_thinking_tokens": Field(Integer(0, INT32)),
    "require_reasoning": Field(Flag()),
    # what to return
    "stream": Field(Flag()),
    "return_logprob": Field(Flag(), per_request=True, also="logprobs"),
    "logprob_start_len": Field(Integer(-1, INT32), per_request=True),
    "top_logprobs_num": Field(Integer(0, VOCAB), per_request=True, also="top_logprobs, logprobs"),
    "token_ids_logprob": Field(TokenIds(), per_request=True, gaps=True),
    "return_sampling_mask": Field(Flag(), per_request=True),
    "sampling_logprobs_mode": Field(OneOf(("selected", "support")), per_request=True, gaps=True),
    "return_text_in_logprobs": Field(Flag()),
    "return_flat_raw_top_logprobs": Field(Flag()),
    "return_flat_raw_output_top_logprobs": Field(Flag()),
    "return_flat_raw_top_logprobs_b64": Field(Flag()),
    "return_hidden_states": Field(OneOf((True, False, "last")), per_request=True),
    "return_routed_experts": Field(Flag()),
    "routed_experts_start_len": Field(Integer(0, INT32)),
    "return_indexer_topk": Field(Absent(_NO_INDEXER)),
    "return_bytes": Field(Flag()),
    "return_entropy": Field(Flag()),
    "return_prompt_token_ids": Field(Flag()),
    "multi_item_delimiter_indices": Field(Absent(_SCORING)),
    "token_indices_to_pool": Field(Absent(_SCORING)),
    # whose request it is
    "rid": Field(Text(), per_request=True),
    "session_id": Field(Text()),
    "session_params": Field(_SESSION),
    "conversation_id": Field(Text()),
    "lora_path": Field(Text(), per_request=True, gaps=True),
    "lora_id": Field(Text(), per_request=True, gaps=True),
    "extra_key": Field(Text(), per_request=True),
    "cache_salt": Field(Text(), per_request=True),
    "priority": Field(Integer(-INT64)),
    "routing_key": Field(Text()),
    "kv_hints": Field(Json(), per_request=True, gaps=True),
    "background": Field(Flag()),
    "log_metrics": Field(Flag()),
    "no_logs": Field(Flag()),
    "custom_labels": Field(Json(is_object=True)),
    "external_trace_header": Field(Json()),
    "received_time": Field(Number(0, 1e18)),
    "http_worker_ipc": Field(Absent(_INTERNAL)),
    # where it runs
    "bootstrap_host": Field(Text(), per_request=True, gaps=True),
    "bootstrap_port": Field(Integer(0, 65535), per_request=True, gaps=True),
    "bootstrap_room": Field(Integer(0), per_request=True, gaps=True),
    "bootstrap_pair_key": Field(Text(), per_request=True, gaps=True),
    "decode_tp_size": Field(Integer(1, INT32), per_request=True, gaps=True),
    "routed_dp_rank": Field(Integer(0, INT32)),
    "data_parallel_rank": Field(Integer(0, INT32)),
    "disagg_prefill_dp_rank": Field(Integer(0, INT32)),
    "need_wait_for_mm_inputs": Field(Absent(_TEXT_ONLY)),
    "num_items_assigned": Field(Absent(_TEXT_ONLY)),
    "encoder_urls": Field(Absent(_TEXT_ONLY)),
}

# Formats of weights that pass through the model's own reader, tensor by tensor. Others copy into
# parameters by name: they would miss the N-gram tables, the draft's head and the norms' factors.
STREAMED = ("auto", "safetensors", "fastsafetensors", "runai_streamer", "instanttensor")

# Control requests, by class, that SGLang takes and then fails on in its event loop, or that would
# leave wrong weights behind. What a handler itself fails on, `hooks/scheduler_errors.py` answers.
CONTROL: dict[str, dict[str, Kind]] = {
    "UpdateWeightsFromTensorReqInput": {"load_format": OneOf(("flattened_bucket",))},
    "UpdateWeightsFromDistributedReqInput": {"load_format": OneOf(("flattened_bucket",))},
    "SlowDownReqInput": {"forward_sleep_time": Number(-1, 60)},  # seconds that all clients wait
}

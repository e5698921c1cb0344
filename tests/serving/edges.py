"""Requests with one absurd value: every field of every route, at the edges of what JSON can say.

Owns: the routes with a body that each answers, and the values. The fields are read off SGLang's own
request classes, so that a field of a later SGLang is tried as soon as it exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

VOCAB, CONTEXT = 4096, 64  # of nano, and of the server under test
SESSION = "edge"  # the test opens it
USER = [{"role": "user", "content": "hi"}]
NEW = {"max_new_tokens": 4, "temperature": 0}

VALUES: list[Any] = [
    None,
    True,
    False,
    *(0, -1, 1, 2, 17, VOCAB - 1, VOCAB, VOCAB + 1, CONTEXT, CONTEXT + 1),
    *(2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(2**31) - 1, -(2**63) - 1),
    *(0.5, -0.5, 1e308, -1e308),
    *("", "x", "1", "\ud800", "(", "(a+)+b", "x" * 10_000),
    *([], [0], [-1], [VOCAB], [2**31], [2**63], [10**30], [1.5], ["x"], [None], [True]),
    *([[]], [[VOCAB]], [["x"]], list(range(2000)), ["y"] * 100),
    *({}, {"x": 1}, {"0": 1}, {"-1": 1}, {str(VOCAB): 1}, {"9" * 30: 1}),
    *({"0": 10**30}, {"0": "x"}, {"type": "x"}, {"x": [[[[[[1]]]]]]}),
]


class Edge(NamedTuple):
    path: str
    body: dict[str, Any]
    field: str
    inside: str | None = None  # the object of the body that the field belongs to

    def with_value(self, value: Any) -> dict[str, Any]:
        if self.inside is None:
            return {**self.body, self.field: value}
        return {**self.body, self.inside: {**self.body[self.inside], self.field: value}}


def edges() -> list[Edge]:
    return [*_native(), *_openai(), *_control()]


def _native() -> Iterator[Edge]:
    from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput, SessionParams
    from sglang.srt.sampling.sampling_params import SamplingParams

    plain = {"input_ids": [5, 6], "sampling_params": NEW}
    logprobs = {**plain, "return_logprob": True, "top_logprobs_num": 2}
    two = {"input_ids": [[5, 6], [7]], "sampling_params": NEW}
    for field in dataclasses.fields(GenerateReqInput):
        for body in (plain, logprobs, two):
            yield Edge("/generate", body, field.name)
    sampled = {"input_ids": [5, 6], "sampling_params": {**NEW, "temperature": 0.7}}
    bounded = {"input_ids": [5, 6], "sampling_params": {**NEW, "min_new_tokens": 2}}
    for name in SamplingParams.__struct_fields__:
        for body in (plain, sampled, bounded):
            yield Edge("/generate", body, name, inside="sampling_params")
    for name in SessionParams.__struct_fields__:
        session = {"id": SESSION, "replace": True}  # or it grows beyond the context
        yield Edge("/generate", {**plain, "session_params": session}, name, inside="session_params")
    for field in dataclasses.fields(EmbeddingReqInput):
        yield Edge("/encode", {"text": "hi"}, field.name)


def _openai() -> Iterator[Edge]:
    from sglang.srt.entrypoints.anthropic import protocol as anthropic
    from sglang.srt.entrypoints.openai import protocol as openai

    chat = {"model": "m", "messages": USER, "max_tokens": 4, "temperature": 0}
    score = {"query": [5], "items": [[6]], "label_token_ids": [5]}
    routes: list[tuple[str, Any, dict[str, Any]]] = [
        ("/v1/chat/completions", openai.ChatCompletionRequest, chat),
        ("/v1/chat/completions", openai.ChatCompletionRequest, {**chat, "logprobs": True}),
        ("/v1/completions", openai.CompletionRequest, {"prompt": "hi", "max_tokens": 4}),
        ("/v1/responses", openai.ResponsesRequest, {"input": "hi", "max_output_tokens": 8}),
        ("/v1/messages", anthropic.AnthropicMessagesRequest, chat),
        ("/v1/messages/count_tokens", anthropic.AnthropicCountTokensRequest, chat),
        ("/v1/tokenize", openai.TokenizeRequest, {"prompt": "hi"}),
        ("/v1/detokenize", openai.DetokenizeRequest, {"tokens": [5, 6]}),
        ("/v1/embeddings", openai.EmbeddingRequest, {"input": "hi"}),
        ("/v1/classify", openai.ClassifyRequest, {"input": "hi"}),
        ("/v1/rerank", openai.V1RerankReqInput, {"query": "hi", "documents": ["x"]}),
        ("/v1/score", openai.ScoringRequest, score),
    ]
    for path, request, body in routes:
        for name in request.model_fields:
            yield Edge(path, {"model": "m", **body}, name)


# Left out: what stops the server or the machine on purpose (pausing, profiling, weight groups).
_CONTROL = {
    "/open_session": ("OpenSessionReqInput", {"capacity_of_str_len": 100}),
    "/close_session": ("CloseSessionReqInput", {"session_id": "x"}),
    "/abort_request": ("AbortReq", {"rid": "x"}),
    "/slow_down": ("SlowDownReqInput", {"forward_sleep_time": None}),
    "/get_weights_by_name": ("GetWeightsByNameReqInput", {"name": "model.norm.weight"}),
    "/parse_function_call": ("ParseFunctionCallReq", {"text": "x", "tool_call_parser": "longcat"}),
    "/separate_reasoning": (
        "SeparateReasoningReqInput",
        {"text": "x", "reasoning_parser": "longcat"},
    ),
    "/weights_checker": ("CheckWeightsReqInput", {"action": "checksum"}),
    "/update_weight_version": ("UpdateWeightVersionReqInput", {"new_version": "x"}),
    "/update_weights_from_disk": ("UpdateWeightFromDiskReqInput", {"model_path": "nowhere"}),
    "/update_weights_from_tensor": ("UpdateWeightsFromTensorReqInput", {}),
    "/update_weights_from_distributed": ("UpdateWeightsFromDistributedReqInput", {}),
    "/update_weights_from_ipc": ("UpdateWeightsFromIPCReqInput", {}),
    "/begin_weight_update": ("BeginWeightUpdateReqInput", {}),
    "/end_weight_update": ("EndWeightUpdateReqInput", {}),
    "/continue_generation": ("ContinueGenerationReqInput", {}),
    "/load_lora_adapter": ("LoadLoRAAdapterReqInput", {"lora_name": "x", "lora_path": "nowhere"}),
    "/unload_lora_adapter": ("UnloadLoRAAdapterReqInput", {"lora_name": "x"}),
    "/set_internal_state": ("SetInternalStateReq", {"server_args": {}}),
    "/resume_memory_occupation": ("ResumeMemoryOccupationReqInput", {}),
}


def _control() -> Iterator[Edge]:
    from sglang.srt.managers import io_struct

    for path, (request, body) in _CONTROL.items():
        for name in getattr(io_struct, request).__struct_fields__:
            yield Edge(path, body, name)

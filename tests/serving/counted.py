"""Answers of every API in one short form, and the comparison of two answers field for field.

Owns: which fields may differ between two servers. `counting` has the requests.
"""

from __future__ import annotations

from typing import Any

import pytest

Short = dict[str, Any]
# Time, identity, and what only one of two servers has: speculation's own numbers, and the cache,
# which with drafts keeps one token less of a prompt (its keys are pairs of tokens).
_OWN = ("id", "created", "created_at", "e2e_latency", "response_sent_to_client_ts")
_CACHE = ("cached_tokens", "cached_tokens_details", "cache_read_input_tokens", "input_tokens")


def comparable(answer: Any) -> Any:
    """`answer` without the fields that may differ."""
    if isinstance(answer, dict):
        return {
            key: comparable(value)
            for key, value in answer.items()
            if key not in (*_OWN, *_CACHE) and not key.startswith("spec_")
        }
    return [comparable(value) for value in answer] if isinstance(answer, list) else answer


def nearly(answer: Any) -> Any:
    """Equals an answer whose floats differ by at most 2e-3, as fp32 rounds for other windows."""
    if isinstance(answer, dict):
        return {key: nearly(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [nearly(value) for value in answer]
    return pytest.approx(answer, abs=2e-3) if isinstance(answer, float) else answer


def short(answer: Any, *, stream: bool = False) -> Short:
    """Text, reasoning, reason to end, and the numbers of tokens and of logprobs."""
    if not stream:
        first = answer[0] if isinstance(answer, list) else answer
    else:
        first = answer[-1] if "text" in answer[-1] else answer[0]
    if "meta_info" in first:
        return _native(first)
    if first.get("type", "").startswith("response.") or first.get("object") == "response":
        return _responses(answer[-1]["response"] if stream else answer)
    if first.get("type", "").startswith("message"):
        return _messages(answer if stream else [answer])
    return _choices(answer if stream else [answer])


def _native(answer: Any) -> Short:
    meta = answer["meta_info"]
    return {
        "text": answer["text"],
        "end": meta["finish_reason"],
        "tokens": meta["completion_tokens"],
        "reasoning tokens": meta["reasoning_tokens"],
        "ids": answer["output_ids"],
        "logprobs": len(meta["output_token_logprobs"]),
        "top logprobs": len(meta["output_top_logprobs"]),
    }


def _choices(chunks: list[Any]) -> Short:
    """Of the first choice."""
    text = reasoning = ""
    end, logprobs, usage = None, 0, None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            if choice["index"] > 0:
                continue
            part = choice.get("delta") or choice.get("message") or choice
            text += part.get("text") or part.get("content") or ""
            reasoning += part.get("reasoning_content") or ""
            end = (
                (choice.get("finish_reason"), choice.get("matched_stop"))
                if choice.get("finish_reason")
                else end
            )
            lists = choice.get("logprobs") or {}
            logprobs += len(lists.get("content") or lists.get("tokens") or ())
    assert usage is not None
    return {"text": text, "reasoning": reasoning, "end": end, "logprobs": logprobs} | _usage(usage)


def _usage(usage: Any) -> Short:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return {
        "tokens": usage["completion_tokens"],
        "prompt": usage["prompt_tokens"],
        "reasoning tokens": usage["reasoning_tokens"],
    }


def _responses(answer: Any) -> Short:
    usage = answer["usage"]
    parts = [part for item in answer["output"] for part in item["content"]]
    return {
        "text": "".join(part["text"] for part in parts if part["type"] == "output_text"),
        "reasoning": "".join(part["text"] for part in parts if part["type"] == "reasoning_text"),
        "end": (answer["status"], answer["incomplete_details"]),
        "tokens": usage["output_tokens"],
        "reasoning tokens": usage["output_tokens_details"]["reasoning_tokens"],
    }


def _messages(events: list[Any]) -> Short:
    text = reasoning = ""
    end: Any = None
    tokens = 0
    for event in events:
        blocks = event.get("content", [event["delta"]] if event["type"].endswith("_delta") else [])
        text += "".join(block.get("text", "") for block in blocks)
        reasoning += "".join(block.get("thinking", "") for block in blocks)
        closing = event.get("delta", event)
        if "stop_reason" in closing:
            end = closing["stop_reason"], closing.get("stop_sequence")
            tokens = event["usage"]["output_tokens"]
    return {"text": text, "reasoning": reasoning, "end": end, "tokens": tokens}

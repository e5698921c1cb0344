"""generation_config.json: the sampling that the model's card recommends.

Owns: these values. SGLang reads them from the checkpoint and applies each value that a chat or
completion request leaves out (`--sampling-defaults openai` switches that off). `/generate` and
offline engines do not apply them.
"""

from __future__ import annotations

from typing import Any

SAMPLING: dict[str, float] = {
    "temperature": 0.7,
    "top_p": 0.95,
    "top_k": 4,
    "repetition_penalty": 1.06,
}


def generation_config(*, bos: int, eos: int | list[int], pad: int) -> dict[str, Any]:
    """The content of the file, with the token ids of a checkpoint."""
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    return {**ids, "do_sample": True, **SAMPLING}

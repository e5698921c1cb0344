"""Speculative decoding as the oracle predicts it, on a checkpoint whose drafts are often right.

Owns: that checkpoint, a Llama that drafts for it, and the drafting loop on the reference MTP layer.
`test_speculative` compares engines with them.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sglang_longcat.reference import ReferenceModel
from sglang_longcat.reference.load import BLOCK, SCALE_SUFFIX, dequantize_block_fp8
from sglang_longcat.testing.values import block_fp8

# The word row outweighs the rest of the target's stream, and is nearly all that a draft goes by:
# the two agree on half of the tokens.
_WORD_GAIN = 60.0
_DAMPED = 0.05


def predictable(path: Path, to: Path) -> Path:
    """A copy of checkpoint `path` at `to` whose target mostly follows the current token, and whose
    MTP layer knows that much. Its own embedding lacks every seventh word that the target's has."""
    shutil.copytree(path, to)
    index = json.loads((to / "model.safetensors.index.json").read_text())["weight_map"]
    shards = {file: load_file(to / file) for file in set(index.values())}

    def edit(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        shard, scales = shards[index[name]], name + SCALE_SUFFIX
        if scales in index:  # block FP8; they may lie in another file
            other = shards[index[scales]]
            changed = change(dequantize_block_fp8(shard[name], other[scales]))
            shard[name], other[scales] = block_fp8(changed, block=BLOCK)
        else:
            shard[name] = change(shard[name].float()).bfloat16().contiguous()
        return shard[name]

    word = edit("model.embed_tokens.weight", lambda rows: rows * _WORD_GAIN).float()
    size, known = word.shape[1], torch.arange(len(word))[:, None] % 7 > 0
    edit("model.mtp.embed_tokens.weight", lambda rows: torch.where(known, word, rows))
    edit(
        "model.mtp.layers.0.eh_proj.weight",
        lambda w: torch.cat((torch.eye(size), _DAMPED * w[:, size:]), dim=1),
    )
    for name in ("enorm.m", "hnorm.m"):
        edit(f"model.mtp.layers.0.{name}.weight", torch.ones_like)
    for name in ("self_attn.o_proj", "transformer_layer.mlp.down_proj"):
        edit(f"model.mtp.layers.0.{name}.weight", lambda w: _DAMPED * w)
    for file, tensors in shards.items():
        save_file(tensors, to / file, metadata={"format": "pt"})
    return to


def small_llama(path: Path, to: Path) -> Path:
    """A Llama of two layers at `to` with the tokenizer of checkpoint `path`, for which it can draft
    if `predictable` made that: it has its word table and head, and little between them."""
    target = {name: t for file in path.glob("*.safetensors") for name, t in load_file(file).items()}
    words = target["model.embed_tokens.weight"]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        max_position_embeddings=1024,
    )
    model = LlamaForCausalLM(config)
    weights = {
        "model.embed_tokens.weight": words.float(),
        "model.norm.weight": target["model.norm.weight"].float(),
        "lm_head.weight": target["lm_head.weight"].float(),
    }
    model.load_state_dict(weights, strict=False)
    model.save_pretrained(to)
    for file in path.glob("tokenizer*"):
        shutil.copy(file, to)
    return to


class Drafter:
    """The reference MTP layer in SGLang's drafting loop.

    word: read the target's word table. vocabulary: the tokens that may be drafted, all if None.
    fp8_head: choose them with a block-FP8 copy of the head, from rounded hidden states to rounded
    logits.
    """

    def __init__(
        self,
        model: ReferenceModel,
        *,
        word: bool = False,
        vocabulary: torch.Tensor | None = None,
        fp8_head: bool = False,
    ) -> None:
        assert model.mtp is not None
        self.model, self.head = model, model.mtp
        self.vocabulary = torch.arange(len(model.lm_head)) if vocabulary is None else vocabulary
        self.rows = model.embedding.word if word else model.mtp.word
        self.lm_head = model.lm_head[self.vocabulary]
        self.fp8_head = block_fp8(self.lm_head, block=BLOCK) if fp8_head else None

    @torch.no_grad()
    def drafts(self, ids: torch.Tensor, hidden: torch.Tensor, *, steps: int) -> list[int]:
        """What follows tokens `ids` [T], of which the target computed hidden [T-1, size]: the last
        token is decided, but not fed yet. Later steps read the head's own hidden states."""
        embeddings, tokens = self.rows[ids[1:]], []
        while True:
            drafted = self.head.hidden(embeddings, hidden)[-1:]
            tokens.append(int(self.vocabulary[self.logits(drafted).argmax()]))
            if len(tokens) == steps:
                return tokens
            hidden = torch.cat((hidden, drafted))
            embeddings = torch.cat((embeddings, self.rows[tokens[-1]][None]))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.fp8_head is None:
            return F.linear(hidden, self.lm_head)
        rows = dequantize_block_fp8(*self.fp8_head)
        return F.linear(hidden.bfloat16().float(), rows).bfloat16()

    def accepted(self, prompt: Sequence[int], output: Sequence[int], *, steps: int) -> Counter[int]:
        """How many verifications accept 0, 1, .. `steps` drafts while `output` is decided. The last
        window may reach past the end: it is held against what the target would have said."""
        sequence = torch.tensor([*prompt, *output])
        sequence = torch.tensor([*sequence, *self.model.greedy(sequence.tolist(), steps)])
        hidden, counts = self.model.hidden(sequence), Counter[int]()
        known = len(prompt) + 1
        while known < len(prompt) + len(output):
            drafts = torch.tensor(self.drafts(sequence[:known], hidden[: known - 1], steps=steps))
            right = int((drafts == sequence[known : known + steps]).int().cumprod(0).sum())
            counts[right] += 1
            known += right + 1
        return counts

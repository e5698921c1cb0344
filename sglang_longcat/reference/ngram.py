"""N-gram ids and the N-gram embedding, from a whole token history.

Owns: the hash, the EOS rule, and the mean of the word row and the projected table rows.
config.NgramConfig has the sizes (orders, moduli). This file keeps no state: it has no token table
and knows neither chunks nor requests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.config import LongcatConfig, NgramConfig
from sglang_longcat.reference.load import Weights
from sglang_longcat.reference.semantics import Semantics


def ngram_ids(tokens: Tensor, config: NgramConfig, eos: tuple[int, ...]) -> Tensor:
    """The row of each table that each token selects.

    id[t, i] = (sum over p < order(i) of c[t, p] * (V**p mod M_i)) mod M_i, where M_i = rows[i] and
    c[t, p] = x[t-p], or 0 if one of x[t-p] .. x[t-1] is an EOS or lies before the start of the
    text. The current token (p = 0) always counts, and an EOS at t does not hide its own
    predecessors.

    tokens [T] int64; eos: the ids that end a text, () for none. Returns [T, tables] int64.
    """
    back = _look_back(tokens, reach=config.n, eos=eos)
    return torch.stack([_table_ids(back, config, table) for table in range(config.tables)], dim=1)


def _look_back(tokens: Tensor, *, reach: int, eos: tuple[int, ...]) -> list[Tensor]:
    """c[:, p] for p = 0 .. reach-1, each [T]."""
    is_eos = torch.isin(tokens, torch.tensor(eos, dtype=tokens.dtype, device=tokens.device))
    visible = torch.ones_like(is_eos)
    contributions = [tokens]
    for p in range(1, reach):
        visible = visible & ~_shift(is_eos, by=p, fill=True)
        contributions.append(_shift(tokens, by=p, fill=0) * visible)
    return contributions


def _shift(values: Tensor, *, by: int, fill: int | bool) -> Tensor:
    """values[t - by], and `fill` before the start."""
    return F.pad(values, (by, 0), value=fill)[: len(values)]


def _table_ids(back: list[Tensor], config: NgramConfig, table: int) -> Tensor:
    modulus = config.rows[table]
    # int64 throughout: at the real size one product reaches 2**17 * 2**24, beyond int32.
    powers = [pow(config.vocab_size, p, modulus) for p in range(config.order(table))]
    return sum((c * power for c, power in zip(back, powers)), torch.zeros_like(back[0])) % modulus


class Embedding:
    """x = (word[token] + sum_i proj_i @ table_i[id_i]) / (1 + tables).

    A config without tables (LongCat-Flash) gives x = word[token]. Called with tokens [T] int64;
    returns [T, hidden] in the model's dtype, summed in fp32.
    """

    def __init__(self, weights: Weights, config: LongcatConfig, semantics: Semantics) -> None:
        self.config, self.semantics = config, semantics
        hidden = config.hidden_size
        self.word = weights.take("embed_tokens.weight", config.vocab_size, hidden)
        self.tables: list[Tensor] = []
        self.projections: list[Tensor] = []
        if config.ngram is None:
            return
        below, width = weights.under("ngram_embeddings"), config.ngram.width
        for i, rows in enumerate(config.ngram.rows):
            self.tables.append(below.take(f"embedders.{i}.weight", rows, width))
            self.projections.append(below.take(f"post_projs.{i}.weight", hidden, width))

    def __call__(self, tokens: Tensor) -> Tensor:
        word = self.word[tokens]
        if self.config.ngram is None:
            return word
        eos = self.config.eos_token_ids if self.semantics.eos_cuts_lookback else ()
        ids = ngram_ids(tokens, self.config.ngram, eos)
        for i in range(self.config.ngram.tables):
            if self.config.ngram.order(i) == self.semantics.late_order:
                ids[:, i] = _shift(ids[:, i], by=1, fill=0)
        total = torch.zeros_like(word, dtype=torch.float32)
        for column, table, projection in zip(ids.T, self.tables, self.projections, strict=True):
            total += F.linear(table[column], projection)
        parts = 1 + len(self.tables)
        if not self.semantics.word_row_divided:
            return (word + total / parts).to(word.dtype)
        return ((word + total) / parts).to(word.dtype)

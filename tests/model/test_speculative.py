"""Speculative decoding says what greedy decoding says, and accepts what the oracle's MTP would.

Real engines with SGLang's own speculative worker, on the CPU. Most tests use a checkpoint whose
drafts are right half of the time (`drafting.predictable`), so that windows of every accepted length
occur. Owns: losslessness in every scheduling mode, acceptance, the distribution of samples.
"""

from __future__ import annotations

import functools
import json
import re
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_longcat.reference import ReferenceModel
from sglang_longcat.speculation.window_limits import min_trie_capacity
from sglang_longcat.testing.engine_flags import nextn as drafting
from tests.harness import Engine, engine, server
from tests.model.drafting import Drafter, small_llama
from tests.model.penalties import BIAS, PENALTIES, ask_penalised, penalised_rows
from tests.model.scoring import Answer, Oracle, ask, assert_same, text
from tests.model.test_disaggregation import pair
from tests.model.test_scheduling import complete, open_stream, post


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> ReferenceModel:
    return ReferenceModel.from_checkpoint(checkpoint)


def accepted(answer: Answer) -> Counter[int]:
    """How many verifications accepted 0, 1, 2, ... drafts."""
    return +Counter(dict(enumerate(answer.meta["spec_correct_drafts_histogram"])))


def assert_drafted(answers: Sequence[Answer], drafter: Drafter, *, steps: int) -> None:
    for answer in answers:
        assert accepted(answer) == drafter.accepted(answer.prompt, answer.output, steps=steps), (
            answer.prompt
        )


def test_every_prompt_of_the_random_checkpoint(
    tiny: Path, prompts: dict[str, list[int]], oracle: Oracle
) -> None:
    """Red if a verified window is hashed with a rejected draft, with the window before it, or with
    another request's: here nearly every draft is rejected. EOS in and around the look-back."""
    with engine(tiny, **drafting(3)) as llm:
        assert_same(ask(llm, list(prompts.values()), logprobs_from=0), oracle)
        assert llm.log.count("N-gram cache: ") == 1, "the draft has one too"


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_acceptance(checkpoint: Path, judge: Oracle, reference: ReferenceModel, steps: int) -> None:
    """Red if the draft reads another hidden state than the target's final-normed one, drafts from
    the wrong embedding, position or KV, or keeps KV of rejected drafts: then it accepts other
    numbers of tokens than the oracle's MTP layer. And if anything else than the target decides."""
    prompts = [text(length, seed=length) for length in (1, 2, 5, 11, 30)]
    with engine(checkpoint, **drafting(steps)) as llm:
        answers = ask(llm, prompts, max_new_tokens=20)
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference), steps=steps)
    assert sum(right * n for answer in answers for right, n in accepted(answer).items()) >= 10, (
        "hardly a draft was right"
    )


def test_word_table_of_the_target(
    checkpoint: Path, judge: Oracle, reference: ReferenceModel
) -> None:
    """Red if LONGCAT_DRAFT_EMBEDDING=word does not reach the draft, or drafts with the n-gram rows.
    The target's table knows words that the draft's own lacks."""
    prompts = [text(length, seed=length) for length in (4, 9, 12)]
    with engine(checkpoint, **drafting(3), env={"LONGCAT_DRAFT_EMBEDDING": "word"}) as llm:
        answers = ask(llm, prompts, max_new_tokens=20)
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference, word=True), steps=3)
    own = [Drafter(reference).accepted(answer.prompt, answer.output, steps=3) for answer in answers]
    assert own != [accepted(answer) for answer in answers], "the two tables draft alike"


@pytest.mark.parametrize(
    "flags",
    [
        {"chunked_prefill_size": 1},
        {"chunked_prefill_size": 3, "disable_overlap_schedule": True},
        {"chunked_prefill_size": 8, "page_size": 4},
    ],
    ids=lambda flags: "-".join(f"{name}={value}" for name, value in flags.items()),
)
def test_chunks_and_cached_prefixes(
    checkpoint: Path, judge: Oracle, reference: ReferenceModel, flags: dict[str, Any]
) -> None:
    """Red if a chunk's last token, a cached prefix or an odd page leaves the draft without the KV
    that a whole prompt gives it (acceptance drops), or the target without its predecessors. Twice:
    the second time most of a prompt comes from the radix cache."""
    crowd = [text(length, seed=100 + length) for length in (1, 2, 3, 8, 17, 29)]
    with engine(checkpoint, **drafting(3), **flags) as llm:
        answers = [*ask(llm, crowd), *ask(llm, crowd)]
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference), steps=3)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_retraction(checkpoint: Path, judge: Oracle, overlap: bool) -> None:
    """Red if a request that was thrown out of a full KV pool between its windows comes back hashed
    without its own earlier output, or with tokens that were never accepted."""
    prompts = [text(length, seed=400 + length) for length in range(6, 12)]
    with engine(
        checkpoint,
        **drafting(3),
        max_total_tokens=200,
        schedule_conservativeness=0.01,
        chunked_prefill_size=4,
        disable_overlap_schedule=not overlap,
    ) as llm:
        answers = ask(llm, prompts, max_new_tokens=40, ignore_eos=False)
    assert any(answer.meta["num_retractions"] for answer in answers)
    assert all(len(answer.output) == 40 for answer in answers)
    assert_same(answers, judge)


def test_few_slots(checkpoint: Path, judge: Oracle) -> None:
    """Red if the last, overlapped window of a finished request writes into its slot's next owner.
    Outputs end in the middle of a window too."""
    prompts = [text(1 + i % 5, seed=500 + i) for i in range(14)]
    with engine(checkpoint, **drafting(3), max_running_requests=3) as llm:
        for some, length in ((prompts[:7], 3), (prompts[7:], 5), (prompts[::3], 1)):
            assert_same(ask(llm, some, max_new_tokens=length), judge)


@pytest.mark.parametrize("overlap", [True, False], ids=["overlap", "no-overlap"])
def test_abort_and_reuse(checkpoint: Path, judge: Oracle, overlap: bool) -> None:
    """Red if a request that is aborted between windows still writes to its slot after a new request
    took it over."""
    flags = {**drafting(3), "max_running_requests": 2, "disable_overlap_schedule": not overlap}
    with server(checkpoint, **flags) as http:
        for start in (600, 700):
            streams = [open_stream(http, text(4, seed=start + i)) for i in range(2)]
            post(http, "/abort_request", {"abort_all": True}).close()
            fresh = [text(n, seed=start + 10 + n) for n in (1, 2, 6, 3)]
            with ThreadPoolExecutor(len(fresh)) as pool:
                assert_same(pool.map(functools.partial(complete, http), fresh), judge)
            for stream in streams:
                assert b'"type":"abort"' in stream.read().replace(b" ", b"")


def test_acceptance_is_on_the_metrics_page(checkpoint: Path) -> None:
    """Red if the gauges that the docs and the dashboard name are gone, or count another thing."""
    with server(checkpoint, **drafting(3), enable_metrics=True, decode_log_interval=1) as http:
        complete(http, text(11, seed=11))
        with urllib.request.urlopen(f"{http.base_url}/metrics", timeout=30) as response:
            page = response.read().decode()
    length, rate = (
        float(re.findall(rf"^sglang:spec_accept_{name}{{.*}} (.*)$", page, flags=re.MULTILINE)[0])
        for name in ("length", "rate")
    )
    assert 1 <= length <= 4
    assert length == pytest.approx(1 + 3 * rate)


def test_proposals_from_the_text(checkpoint: Path, judge: Oracle) -> None:
    """Red if NGRAM speculation verifies with the ids of another text: its proposals are padded."""
    flags = {"speculative_num_draft_tokens": 6, "speculative_ngram_max_bfs_breadth": 1}
    prompts = [text(length, seed=length) for length in (1, 5, 11, 30)]
    with engine(checkpoint, speculative_algorithm="NGRAM", **flags) as llm:
        answers = [*ask(llm, prompts, max_new_tokens=24), *ask(llm, prompts, max_new_tokens=12)]
    assert_same(answers, judge)
    lengths = set().union(*(accepted(answer) for answer in answers))
    assert {0, 5} < lengths, "no proposal was partly padding and partly right"


def test_the_smallest_trie(checkpoint: Path, judge: Oracle) -> None:
    """Red if `min_trie_capacity` is too small: then requests that come and go end the server. The
    trie holds one path, so that each insertion evicts another request's."""
    depth = 5
    flags = {
        "speculative_num_draft_tokens": 4,
        "speculative_ngram_max_bfs_breadth": 1,
        "speculative_ngram_max_trie_depth": depth,
        "speculative_ngram_capacity": min_trie_capacity(depth),
    }
    prompts = [text(length, seed=length) for length in range(1, 60, 3)]
    with engine(checkpoint, speculative_algorithm="NGRAM", **flags) as llm:
        answers = [*ask(llm, prompts, max_new_tokens=24), *ask(llm, prompts, max_new_tokens=5)]
    assert_same(answers, judge)


@pytest.mark.parametrize("flags", [{}, {"tp_size": 2}], ids=["tp1", "tp2"])
def test_a_draft_model_of_another_kind(
    checkpoint: Path, judge: Oracle, tmp_path: Path, flags: dict[str, Any]
) -> None:
    """Red if STANDALONE speculation cannot start beside this target, or verifies with the ids of
    another text, in windows of every accepted length."""
    llama = small_llama(checkpoint, tmp_path / "llama")
    flags = flags | drafting(3) | {"speculative_algorithm": "STANDALONE"}
    prompts = [text(length, seed=length) for length in (1, 2, 5, 11, 30)]
    with engine(checkpoint, **flags, speculative_draft_model_path=str(llama)) as llm:
        answers = [*ask(llm, prompts, max_new_tokens=20), *ask(llm, prompts)]
    assert_same(answers, judge)
    assert {0, 3} <= set().union(*(accepted(answer) for answer in answers)), (
        "hardly a draft was right"
    )


def test_separate_draft_checkpoint(
    checkpoint: Path, judge: Oracle, reference: ReferenceModel, tmp_path: Path
) -> None:
    """Red if --speculative-draft-model-path needs more than config.json and the MTP tensors, or if
    the draft's positions are not rotated as the target's are, whatever its own config says."""
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"rope_scaling": None, "rope_theta": 10000.0}  # shorter ones SGLang refuses itself
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors: dict[str, torch.Tensor] = {}
    for shard in checkpoint.glob("*.safetensors"):
        tensors |= {n: t for n, t in load_file(shard).items() if n.startswith("model.mtp.")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    prompts = [text(length, seed=length) for length in (5, 11)]
    with engine(checkpoint, **drafting(3), speculative_draft_model_path=str(tmp_path)) as llm:
        answers = ask(llm, prompts, max_new_tokens=20)
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference), steps=3)


@pytest.mark.parametrize(
    "flags",
    [{}, {"tp_size": 2}, {"tp_size": 2, "attn_dp_size": 2}],
    ids=["tp1", "tp2", "tp2-dp2"],
)
def test_reduced_draft_vocabulary(
    checkpoint: Path,
    judge: Oracle,
    reference: ReferenceModel,
    tmp_path: Path,
    flags: dict[str, Any],
) -> None:
    """Red if --speculative-token-map reduces what is verified too, drafts ids of the reduced
    vocabulary as if they were the model's, or picks rows of one rank's slice of the head."""
    kept = torch.arange(len(reference.lm_head))[torch.arange(len(reference.lm_head)) % 5 > 0]
    torch.save(kept, tmp_path / "kept.pt")
    prompts = [text(length, seed=length) for length in (2, 5, 11)]
    flags = flags | {"speculative_token_map": str(tmp_path / "kept.pt")}
    with engine(checkpoint, **drafting(3), **flags) as llm:
        answers = ask(llm, prompts, max_new_tokens=20)
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference, vocabulary=kept), steps=3)


def test_prefill_and_decode_workers(
    checkpoint: Path, judge: Oracle, reference: ReferenceModel
) -> None:
    """Red if a request that arrives with its KV is verified without the end of its prompt, or
    drafted without the hidden state that came along."""
    prompts = [text(length, seed=length) for length in (1, 2, 5, 11)]
    with pair(checkpoint, **drafting(3)) as workers:
        answers = workers.ask(prompts, max_new_tokens=16)
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference), steps=3)


def test_drafts_on_the_decode_worker_alone(checkpoint: Path, judge: Oracle) -> None:
    """Red if a request that arrives without the draft's KV and hidden state is refused, or if what
    lies there instead decides a token. Only fewer of its drafts are right."""
    prompts = [text(length, seed=length) for length in (1, 2, 5, 11)]
    with pair(checkpoint, decode=drafting(3)) as workers:
        answers = workers.ask(prompts, max_new_tokens=16)
    assert_same(answers, judge)
    assert sum(right * n for answer in answers for right, n in accepted(answer).items()) > 0


NGRAM = {
    "speculative_algorithm": "NGRAM",
    "speculative_num_draft_tokens": 4,
    "speculative_ngram_max_bfs_breadth": 1,
}


@pytest.mark.parametrize(
    "flags",
    [drafting(3), drafting(3) | {"disable_overlap_schedule": True}, NGRAM],
    ids=["overlap", "no-overlap", "from-the-text"],
)
def test_penalties_count_every_token(
    checkpoint: Path, judge: Oracle, flags: dict[str, Any]
) -> None:
    """Red if a token that was accepted, or drafted before it in the same window, is not counted, a
    rejected one is, or a penalty reaches a neighbour's window. Requests come and go."""
    with engine(checkpoint, **flags, max_running_requests=5) as llm:
        answers = ask_penalised(llm)
    for answer, wish in zip(answers, PENALTIES * 2):
        wanted = [int(row.argmax()) for row in penalised_rows(judge, answer, wish)]
        assert answer.output == wanted, wish
    applied = [answer.output != judge.choices(answer, bias=BIAS) for answer in answers]
    assert sum(applied) >= 6, "the penalties changed next to nothing"


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "hot": {"type": "boolean"}},
        "required": ["city", "hot"],
    }
)


def test_requests_with_conditions(checkpoint: Path) -> None:
    """Red if a stop inside a window lets the rest of it out, if a grammar does not follow the
    drafts, if a logit bias misses rows of the window, or logprobs are of other rows: the same
    engine without speculation gives the answers, all in one batch."""
    free = {"temperature": 0, "max_new_tokens": 24}
    with engine(checkpoint) as llm:
        ((plain, said, *_),) = conditional(llm, [free])
        wishes = [
            *({**free, "stop": [said[i : i + 3]]} for i in (4, 11, 18)),
            {**free, "stop_regex": f"[{re.escape(said[9])}]"},
            *({**free, "stop_token_ids": [plain[i]]} for i in (1, 3, 6, 8)),
            {**free, "stop_token_ids": [plain[5]], "no_stop_trim": True},
            {**free, "max_new_tokens": 40, "json_schema": SCHEMA},
            {**free, "max_new_tokens": 12, "regex": "(ab|cd){2,5}!"},
            {**free, "logit_bias": {str(plain[2]): -100.0, "77": 4.0}},
            {**free, "max_new_tokens": 2},
            free,
        ]
        want = conditional(llm, wishes)
    for flags in ({}, {"disable_overlap_schedule": True}):
        with engine(checkpoint, **drafting(3), **flags) as llm:
            assert conditional(llm, wishes) == want


def conditional(
    llm: Engine, wishes: list[dict[str, Any]]
) -> list[tuple[list[int], str, str, list[list[int]]]]:
    """Tokens, text, reason to stop and the likeliest tokens of each place, for the same prompt
    under each wish."""
    prompts = [text(7, seed=70)] * len(wishes)
    replies = llm.generate(
        input_ids=prompts, sampling_params=wishes, return_logprob=True, top_logprobs_num=2
    )
    return [
        (
            reply["output_ids"],
            reply["text"],
            str(reply["meta_info"]["finish_reason"]),
            [[token for _, token, _ in row] for row in reply["meta_info"]["output_top_logprobs"]],
        )
        for reply in replies
    ]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param({}, id="tp2"),
        pytest.param({"ep_size": 2, "disable_overlap_schedule": True}, id="tp2-ep2"),
        pytest.param({"attn_dp_size": 2}, id="tp2-dp2"),
    ],
)
def test_two_ranks(
    checkpoint: Path, judge: Oracle, reference: ReferenceModel, flags: dict[str, Any]
) -> None:
    """Red if the ranks hold different slices of the draft's embedding or head than they add up,
    accept different drafts, or (DP) if a rank without requests breaks the sums of the other."""
    prompts = [text(length, seed=length) for length in (1, 3, 9, 20)]
    with engine(checkpoint, **drafting(3), tp_size=2, **flags) as llm:
        answers = [*ask(llm, prompts, max_new_tokens=16), *ask(llm, prompts[2:3])]
    assert_same(answers, judge)
    assert_drafted(answers, Drafter(reference), steps=3)


@pytest.mark.parametrize(
    "kept",
    [{"temperature": 0.5, "top_k": 6}, {"temperature": 0.8, "min_p": 0.1}],
    ids=["top-k", "min-p"],
)
def test_samples_follow_the_targets_distribution(
    checkpoint: Path, judge: Oracle, kept: dict[str, Any]
) -> None:
    """Red if verification prefers drafts, drops the chance of a refused one, or leaves min_p out:
    three sampled tokens after one prompt, by chi-squared against the oracle's distribution. The
    first comes from the prefill; the others are drafts that were accepted or tokens drawn in their
    place. A sound engine fails once in 10,000 seeds, and the seed is fixed."""
    prompt, copies, cut = text(3, seed=4), 800, 0.02
    sampling = {"max_new_tokens": 3, "ignore_eos": True, **kept}
    with engine(checkpoint, **drafting(2), max_running_requests=64, random_seed=7) as llm:
        answers = ask(llm, [prompt] * copies, logprobs_from=None, **sampling)
    outputs = [tuple(answer.output) for answer in answers]
    drafted = sum(accepted(answer)[right] for answer in answers for right in (1, 2))
    assert drafted > copies / 10, "hardly a draft was accepted"
    expected = continuations(judge, prompt, depth=3, **kept)
    assert set(outputs) <= set(expected)
    common = {key: chance for key, chance in expected.items() if chance > cut}
    counts = [outputs.count(key) for key in common]
    chances = list(common.values())
    observed = torch.tensor([*counts, copies - sum(counts)], dtype=torch.float64)
    wanted = torch.tensor([*chances, 1 - sum(chances)], dtype=torch.float64) * copies
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    freedom = torch.tensor(len(common), dtype=torch.float64)
    p_value = float(torch.special.gammaincc(freedom / 2, statistic / 2))
    assert p_value > 1e-4, (p_value, observed, wanted)


def continuations(
    judge: Oracle,
    prompt: list[int],
    *,
    depth: int,
    temperature: float,
    top_k: int = 64,
    min_p: float = 0,
) -> dict[tuple[int, ...], float]:
    """Every continuation of `depth` tokens and its chance under top-k or min-p sampling."""
    chances: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(depth):
        longer = {}
        for tokens, chance in chances.items():
            logits = judge.logits((*prompt, *tokens))[-1] / temperature
            best = logits.topk(top_k)
            shares = best.values.softmax(0)
            shares = shares.where(shares >= min_p * shares.max(), 0)
            for token, share in zip(best.indices.tolist(), (shares / shares.sum()).tolist()):
                if share:
                    longer[(*tokens, token)] = chance * share
        chances = longer
    return chances

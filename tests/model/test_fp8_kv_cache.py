"""`--kv-cache-dtype fp8_e4m3` on the CPU engine, against an oracle that rounds each row alike.

The oracle keeps no cache: it rounds a token's row and reads whole sequences. So a row that is
stored in another slot, widened with other scales, or read before it is stored, gives other
logprobs. fp32 sums in another order move a few values to the next FP8 value, and these move later
layers', so logprobs agree less closely than without FP8. Half of the latents' quarters are made 16
times as large as the others: otherwise all scales are alike, and any order of them would do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longcat_kernels import kv_rows
from sglang_longcat.reference import ReferenceModel
from sglang_longcat.testing.engine_flags import nextn
from tests.harness import engine
from tests.model.drafting import Drafter
from tests.model.scoring import Answer, Oracle, ask, text
from tests.model.test_disaggregation import pair
from tests.model.test_modes_gpu import assert_right_tokens
from tests.model.test_scheduling import crowd

FP8 = {"kv_cache_dtype": "fp8_e4m3"}
RANK, ROW = 512, 656  # values and bytes
# Mean |engine - oracle| of logprobs: 0.004 seen, 0.17 from an oracle that does not round.
MEAN_NATS, VISIBLE = 0.02, 0.1
TIE = 0.2  # nats between the oracle's two best tokens: 0.002 seen where the engine takes the second


def uneven(path: Path, to: Path) -> Path:
    """A copy of checkpoint `path` whose latents have quarters of two sizes."""
    shutil.copytree(path, to, copy_function=os.link)
    sizes = torch.tensor([0.25, 2.0, 2.0, 0.25]).repeat_interleave(RANK // 4)
    for shard in to.glob("*.safetensors"):
        tensors = load_file(shard)
        for name in tensors:
            if name.endswith("kv_a_layernorm.weight"):
                tensors[name] = (tensors[name].float() * sizes).bfloat16()
        shard.unlink()  # the link, not the original
        save_file(tensors, shard, metadata={"format": "pt"})
    return to


def with_scales(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A cache that widens rows with other scales: `change` of [T, 4]."""

    def cache(rows: torch.Tensor, rank: int) -> torch.Tensor:
        stored = kv_rows.pack(rows, rank)
        scales = kv_rows.parts(stored, rank, rows.shape[-1] - rank).scales
        scales.copy_(change(scales.clone()))
        return kv_rows.unpack(stored, rank)

    return cache


def without_scales(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """As SGLang's own FP8 pool keeps latents."""
    return torch.cat((rows[:, :rank].to(kv_rows.FP8).to(rows.dtype), rows[:, rank:]), dim=-1)


MISTAKES: dict[str, Callable[..., torch.Tensor] | None] = {
    "not rounded": None,
    "no scales": without_scales,
    "scales ignored": with_scales(torch.ones_like),
    "scales of other quarters": with_scales(lambda scales: scales.roll(1, dims=1)),
    "scales of other tokens": with_scales(lambda scales: scales.roll(1, dims=0)),
}


@pytest.fixture(scope="module")
def lopsided(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return uneven(tiny, tmp_path_factory.mktemp("fp8-rows") / "tiny")


@pytest.fixture(scope="module")
def rounded(lopsided: Path) -> Oracle:
    return Oracle(lopsided, cache=kv_rows.rounded)


@pytest.fixture(scope="module")
def chunked(lopsided: Path) -> list[Answer]:
    """Each prompt twice: the second time most of it comes from the radix cache."""
    with engine(lopsided, **FP8, chunked_prefill_size=7) as llm:
        return [*ask(llm, crowd(seed=0), logprobs_from=0), *ask(llm, crowd(seed=0))]


def distance(answers: Sequence[Answer], oracle: Oracle) -> float:
    return mean(gap for answer in answers for gap in oracle.gaps(answer))


def assert_rounds_alike(answers: Sequence[Answer], oracle: Oracle) -> None:
    assert distance(answers, oracle) < MEAN_NATS
    assert_right_tokens(answers, oracle, TIE)


def test_chunks_and_cached_prefixes(chunked: list[Answer], rounded: Oracle) -> None:
    """Red if a row is stored in another slot or with other scales, or a cached prefix is read
    otherwise than it was stored."""
    assert_rounds_alike(chunked, rounded)
    assert max(answer.meta["cached_tokens"] for answer in chunked) > 30


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_would_show(chunked: list[Answer], lopsided: Path, mistake: str) -> None:
    """Red if the limits above lose their teeth."""
    assert distance(chunked, Oracle(lopsided, cache=MISTAKES[mistake])) > VISIBLE


@pytest.mark.parametrize(
    "flags",
    [
        {"chunked_prefill_size": 8, "page_size": 4, "disable_overlap_schedule": True},
        {"tp_size": 2, "attn_dp_size": 2},
    ],
    ids=["pages-of-4", "tp2-dp2"],
)
def test_scheduling(lopsided: Path, rounded: Oracle, flags: dict[str, Any]) -> None:
    """Red if rows depend on how a batch is made up, or if a rank without requests stores some."""
    with engine(lopsided, **FP8, **flags) as llm:
        assert_rounds_alike(ask(llm, crowd(seed=50), logprobs_from=0), rounded)


def test_retraction(lopsided: Path, rounded: Oracle) -> None:
    """Red if a request that comes back after a retraction finds rows of another."""
    prompts = [text(length, seed=400 + length) for length in range(6, 12)]
    pool = {"max_total_tokens": 160, "schedule_conservativeness": 0.01, "chunked_prefill_size": 4}
    with engine(lopsided, **FP8, **pool) as llm:
        answers = ask(llm, prompts, max_new_tokens=40, ignore_eos=False)
    assert any(answer.meta["num_retractions"] for answer in answers)
    assert_rounds_alike(answers, rounded)


def test_drafts(checkpoint: Path, tmp_path: Path) -> None:
    """Red if the draft's cache has another kind of rows, a window is stored or read otherwise than
    single tokens, or rows of rejected drafts stay."""
    path = uneven(checkpoint, tmp_path / "predictable")
    prompts = [text(length, seed=length) for length in (1, 2, 5, 11, 30)]
    with engine(path, **FP8, **nextn(3)) as llm:
        answers = ask(llm, prompts, max_new_tokens=20)
        assert llm.log.count(f"FP8 rows of {ROW} bytes: KV Cache is allocated") == 2
    assert_rounds_alike(answers, Oracle(path, cache=kv_rows.rounded))
    drafter = Drafter(ReferenceModel.from_checkpoint(path, cache=kv_rows.rounded))
    expected = [drafter.accepted(answer.prompt, answer.output, steps=3) for answer in answers]
    wanted = sum(right * count for counts in expected for right, count in counts.items())
    accepted = sum(
        right * count
        for answer in answers
        for right, count in enumerate(answer.meta["spec_correct_drafts_histogram"])
    )
    assert accepted == pytest.approx(wanted, rel=0.2)
    assert wanted >= 10, "hardly a draft was right"


def test_prefill_and_decode_workers(lopsided: Path, rounded: Oracle) -> None:
    """Red if rows arrive at the decode worker as something else, or do not survive their way to the
    host and back, which a retraction takes there."""
    decode = {"max_total_tokens": 160, "num_reserved_decode_tokens": 1}
    with pair(lopsided, **FP8, decode=decode) as workers:
        prompts = [text(length, seed=4000 + length) for length in range(6, 12)]
        answers = workers.ask(prompts, max_new_tokens=40, ignore_eos=False)
        assert "Retract" in workers.decode.log, "nothing was retracted: the test tests nothing"
    assert_rounds_alike(answers, rounded)

"""Which tokens a forward is seeded with: prefills, mixed batches, returns, arrivals with KV."""

from array import array
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from longcat_kernels.ngram import Window, make_hash_params, window_ids
from sglang_longcat.config import NgramConfig
from sglang_longcat.ngram.seeds import arrived_cells, collect_seeds
from sglang_longcat.reference import ngram_ids

LITE = NgramConfig(n=4, k=4, vocab_size=131072, rows_base=78 * 131072, hidden_size=3072)
EOS = 2
DECODE = SimpleNamespace(is_extend_without_speculative=lambda: False)
EXTEND = SimpleNamespace(is_extend_without_speculative=lambda: True)


def request(slot, prompt, output=(), fill=None):
    return SimpleNamespace(
        kv=SimpleNamespace(req_pool_idx=slot),
        origin_input_ids=list(prompt),
        output_ids=list(output),
        full_untruncated_fill_ids=[*prompt, *output] if fill is None else fill,
    )


def batch(mode, reqs, starts=None, decoding=None):
    return SimpleNamespace(forward_mode=mode, reqs=reqs, prefix_lens=starts, decoding_reqs=decoding)


def triples(seeds):
    return [] if seeds is None else [tuple(entry) for entry in seeds.values.t().tolist()]


def test_nothing_to_seed():
    """Prompts from their first token on, and plain decode steps, cost no copy."""
    fresh = [request(1, [10, 11]), request(2, [12])]
    assert collect_seeds(batch(EXTEND, fresh, [0, 0]), order=4) is None
    assert collect_seeds(batch(DECODE, fresh), order=4) is None
    assert collect_seeds(batch(DECODE, fresh), order=4, arrived={1: [], 2: []}) is None


@pytest.mark.parametrize("mode", ["TARGET_VERIFY", "DRAFT_EXTEND_V2", "DECODE", "IDLE"])
def test_windows_are_not_seeded(mode):
    """A window continues its slot; what SGLang's requests know is behind, or never was accepted."""
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    req = request(1, range(9), output=[20, 21])
    assert collect_seeds(batch(ForwardMode[mode], [req], [7]), order=4) is None


def test_chunks_and_cached_prefixes():
    """At most three tokens, and never more than there are."""
    reqs = [request(slot, range(100 * slot, 100 * slot + 9)) for slot in (1, 2, 3)]
    assert triples(collect_seeds(batch(EXTEND, reqs, [1, 3, 7]), order=4)) == [
        *((1, p, 100 + p) for p in (0,)),
        *((2, p, 200 + p) for p in (0, 1, 2)),
        *((3, p, 300 + p) for p in (4, 5, 6)),
    ]


def test_prefill_after_retraction():
    """The prefix that is cached ends in the request's own output."""
    back = request(5, [10, 11], output=[20, 21, 22])
    assert triples(collect_seeds(batch(EXTEND, [back], [4]), order=4)) == [
        (5, 1, 11),
        (5, 2, 20),
        (5, 3, 21),
    ]


def scheduled(slot, tokens, *, start, output=()):
    """SGLang's own request and batch, with what `mix_with_running` reads of them."""
    req = Req(str(slot), None, array("q", tokens), SamplingParams(max_new_tokens=4))
    req.kv.req_pool_idx = slot
    req.output_ids.extend(output)
    req.refresh_fill_ids()
    length = torch.tensor([start + 1])
    prefill = ScheduleBatch(
        reqs=[req],
        model_config=SimpleNamespace(is_encoder_decoder=False),
        sampling_info=SimpleNamespace(merge_batch=lambda other: None),
        device="cpu",
        spec_algorithm=SpeculativeAlgorithm.NONE,
    )
    prefill.forward_mode = ForwardMode.EXTEND
    prefill.req_pool_indices = prefill.req_pool_indices_cpu = torch.tensor([slot])
    prefill.seq_lens = prefill.seq_lens_cpu = prefill.orig_seq_lens = length
    prefill.out_cache_loc = torch.tensor([slot])
    prefill.prefix_lens, prefill.extend_lens, prefill.extend_num_tokens = [start], [1], 1
    prefill.extend_logprob_start_lens = [0]
    return prefill


@pytest.mark.parametrize("known", [0, 1], ids=["overlap", "no-overlap"])
def test_mixed_batch(known):
    """A decoding request is left out, in a batch that SGLang mixed itself. Its ring already holds
    what comes before position 5, so seeding it would change no id, only cost a copy per step; its
    token at position 5 is not on the host yet with the overlap scheduler."""
    mixed = scheduled(1, range(10, 18), start=5)
    running = scheduled(2, [30, 31, 32], start=5, output=[33, 34, 35][: 2 + known])
    mixed.mix_with_running(running)
    mixed.decoding_reqs = running.reqs  # as the scheduler does next
    assert mixed.forward_mode.is_mixed()
    assert mixed.prefix_lens == [5, 5]
    assert len(running.reqs[0].full_untruncated_fill_ids) == 5 + known
    assert triples(collect_seeds(mixed, order=4)) == [(1, 2, 12), (1, 3, 13), (1, 4, 14)]


def test_decodes_run_as_a_prefill():
    """As above: under data-parallel attention a rank's decode step becomes a prefill of one token
    each, when another rank prefills."""
    running = scheduled(2, [30, 31, 32], start=5, output=[33, 34])
    running.convert_decode_to_extend()
    assert running.prefix_lens == [5]
    assert collect_seeds(running, order=4) is None


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("eos_back", [None, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("returned", [0, 1, 2, 5], ids=lambda n: f"{n} tokens decoded before")
def test_first_decode_step_after_arrival(length, eos_back, returned):
    """The ids of the first two decode steps, in a slot full of someone else's tokens, are those of
    the whole text: after a transfer, or after a retraction whose KV was restored."""
    prompt = torch.randint(100, 131072, (length,), generator=torch.manual_seed(length)).tolist()
    if eos_back is not None and eos_back <= length:
        prompt[-eos_back] = EOS
    output = [131071 - i for i in range(1 + returned)]
    arrived = arrived_cells(batch(None, [request(2, prompt, output, fill=[])]), order=LITE.n)
    seeds = collect_seeds(batch(DECODE, []), LITE.n, arrived)
    params = make_hash_params(
        vocab_size=LITE.vocab_size,
        rows=LITE.rows,
        orders=tuple(LITE.order(i) for i in range(LITE.tables)),
        eos=(EOS,),
        device="cpu",
    )
    ring = torch.full((3, 16), 77, dtype=torch.int32)
    for slot, position, token in triples(seeds):
        ring[slot, position % 16] = token

    text = torch.tensor([*prompt, *output, 55])
    want = ngram_ids(text, LITE, (EOS,)) + params.offsets
    for position in (len(text) - 2, len(text) - 1):
        fed = text[position : position + 1]
        window = Window(fed, torch.tensor([position]), torch.tensor([2]))
        ids = window_ids(window, ring, params)
        assert torch.equal(ids[0], want[position])


def test_arrivals_of_a_reused_slot():
    """A request that ended before its first step, and the next owner of its slot: one cell of the
    ring must not be written twice in one copy (positions 0 and 16 share one)."""
    first = arrived_cells(batch(None, [request(1, range(10, 28), output=[30])]), order=4)
    second = arrived_cells(batch(None, [request(1, [40], output=[41])]), order=4)
    assert triples(collect_seeds(batch(DECODE, []), 4, first | second)) == [(1, 0, 40)]
    owner = batch(EXTEND, [request(1, [50, 51, 52])], [2])
    assert triples(collect_seeds(owner, 4, first)) == [(1, 0, 50), (1, 1, 51)]


def test_long_prompt_is_not_copied():
    """The prompt is indexed, never sliced or concatenated: it may be 256K tokens long."""

    class Prompt(list):
        def __add__(self, other):
            raise AssertionError("copied")

        __radd__ = __iter__ = __add__

        def __getitem__(self, key):
            assert isinstance(key, int)
            return super().__getitem__(key)

    req = request(1, [], output=[9])
    req.origin_input_ids = Prompt([5, 6, 7, 8])
    assert arrived_cells(batch(None, [req]), order=4) == {1: [(1, 6), (2, 7), (3, 8)]}

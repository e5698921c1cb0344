"""What `benchmarks/engine.py` makes of an engine's times and of the scheduler's own rate."""

from itertools import count
from types import SimpleNamespace

import pytest

from benchmarks import engine as engine_benchmark
from tests import ROOT

ROW = {"batch": 8, "input": 4096, "tpot_ms": 4.0, "tok_s": 2000.0, "prefill_tok_s": 5e4}


class Engine:
    """Whose scheduler reports one rate after another, from each data-parallel rank."""

    def __init__(self, rates):
        self.rates = iter(rates)

    def generate(self, **request):
        pass

    def get_server_info(self):
        return {"internal_states": [{"last_gen_throughput": rate} for rate in next(self.rates)]}


def test_the_steady_rate_is_the_median_over_repeats_of_all_ranks(monkeypatch):
    """Red if a rate is read before its batch, ranks are left out, or one odd repeat counts. The
    clock is invented: two real calls may take equally long, and TPOT would be zero."""
    monkeypatch.setattr(engine_benchmark.time, "perf_counter", (n * n for n in count()).__next__)
    args = SimpleNamespace(repeat=3, output=96)
    row = engine_benchmark.measure_batch(Engine([[100, 200], [1, 1], [150, 160]]), 2, 16, args)
    assert (row["steady_tok_s"], row["steady_all_tok_s"]) == (300, [300, 2, 310])


@pytest.mark.parametrize("base", [True, False])
def test_ratios_above_one_are_faster(capsys, base):
    """Red if a ratio is turned around, or one without a counterpart is made up."""
    first = [{**ROW, "steady_tok_s": 1000.0}] if base else []
    ours = [{**ROW, "tpot_ms": 2.0, "steady_tok_s": 1500.0, "prefill_tok_s": 6e4}]
    engine_benchmark.print_table({"in-tree": first, "host": ours})
    head, _, *_, last = capsys.readouterr().out.splitlines()
    cells = dict(zip(range(10), (cell.strip() for cell in last.strip("|").split("|"))))
    assert (cells[3], cells[6], cells[8]) == ("2.000 ms", "1,500", "60,000")
    expected = ("2.000", "1.500", "1.200") if base else ("-", "-", "-")
    assert (cells[4], cells[7], cells[9]) == expected
    assert head.count("speed-up") == 3


def test_a_gpu_that_does_not_look_smaller_ends_the_run():
    """Red if a result of the large GPU passes for one of a small GPU."""
    engine_benchmark.check_gpu_memory("", None)
    engine_benchmark.check_gpu_memory("smaller GPU: 24564 MiB\n", 24564)
    with pytest.raises(SystemExit, match="24564 MiB"):
        engine_benchmark.check_gpu_memory("smaller GPU: 32607 MiB\n", 24564)


def test_pinned_memory_is_that_of_the_log():
    """Red if `ngram/host_memory.py` says it in other words."""
    source = (ROOT / "sglang_longcat" / "ngram" / "host_memory.py").read_text()
    assert "pinned %.1f GiB of host memory" in source
    line = "pinned 16.5 GiB of host memory: 2.0 s to touch, 1.0 s to register\n"
    assert engine_benchmark.pinned_gib(f"[t] {line}{line}") == 33
    assert engine_benchmark.pinned_gib("nothing") == 0

"""Judgement and thresholds of the accuracy gates, without a model."""

import datetime
import subprocess
import sys

import pytest

from ci.accuracy.report import Row, judge, markdown, thresholds
from ci.accuracy.suites import SUITES, row, run
from tests import ROOT

NANO = [(dtype, name) for dtype, table in thresholds("nano").items() for name in table]
PUBLISHED = {
    "mmlu": 85.52, "mmlu_pro": 78.29, "gpqa_diamond": 66.78, "ceval": 86.55, "cmmlu": 82.48,
    "math500": 96.80, "aime24": 72.19, "aime25": 63.23,
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "name"), NANO)
def test_a_threshold_says_where_it_comes_from(dtype, name):
    limit = thresholds("nano", dtype, name)
    assert set(limit) == {"measured", "low", "high", "noise", "sample", "date"}
    assert limit["low"] <= limit["measured"] <= limit["high"]
    assert isinstance(limit["date"], datetime.date)
    width = min(limit["measured"] - limit["low"], limit["high"] - limit["measured"])
    assert limit["noise"] <= max(width, limit["high"] - limit["measured"])


def test_every_suite_has_its_reference_figure():
    limits = thresholds("suite")
    assert set(limits) == set(SUITES)
    assert {name: limits[name]["expected"] for name in PUBLISHED} == PUBLISHED
    for limit in limits.values():
        assert set(limit) == {"expected", "source", "points", "questions", "noise"}


def answered(name, score, error, questions=100):
    """What lm-eval returns, as far as we read it."""
    suite = SUITES[name]
    metric, _, kind = suite.metric.partition(",")
    scores = {suite.metric: score, f"{metric}_stderr,{kind}": error}
    counts = {"part one": {"effective": questions // 2}, "part two": {"effective": questions // 2}}
    return {"results": {suite.name: scores}, "n-samples": counts}


@pytest.mark.parametrize(("score", "passed"), [(0.86, True), (0.81, True), (0.795, False)])
def test_a_result_may_be_below_by_points_and_three_standard_errors(score, passed):
    judged = row("mmlu", answered("mmlu", score, 0.01))
    assert judged.sample == "100 questions"
    assert judged.passed is passed
    assert judged.low == pytest.approx(85.52 - 2 - 3)


def test_another_metric_than_expected():
    """A task of a newer lm-eval that names its filter differently must not pass unnoticed."""
    results = answered("gsm8k", 0.8, 0.01)
    results["results"]["gsm8k"] = {"exact_match,strict-match": 0.8}
    with pytest.raises(KeyError, match="flexible-extract"):
        row("gsm8k", results)


def test_a_report_tells_pass_from_fail():
    limits = {"perplexity": {"measured": 10.0, "low": 9.9, "high": 10.1, "sample": "9 tokens"}}
    good, bad = (judge({"perplexity": value}, limits, prefix="nano")[0] for value in (10.05, 10.5))
    assert (good.passed, bad.passed) == (True, False)
    assert bad.excess == pytest.approx(5)
    lines = markdown([good, bad]).splitlines()
    assert lines[2].endswith("| 9 tokens | pass |")
    assert "FAIL (5 x" in lines[3]


def test_nothing_allowed_means_nothing():
    exact = Row("golden", measured=0.75, expected=1.0, low=1.0, high=1.0, sample="4 answers")
    assert not exact.passed
    assert exact.excess == float("inf")


def test_unknown_suite():
    with pytest.raises(SystemExit, match="gsm8k"):
        run(["nope"], base_url="http://127.0.0.1:1", limit=None, concurrency=1)


def test_tasks_exist():
    """Names that the pinned lm-eval does not have, before a GPU hour finds out."""
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert {suite.task for suite in SUITES.values() if isinstance(suite.task, str)} <= known


def test_the_command_ends_although_a_thread_does_not():
    """pyarrow's threads may wait for ever at exit. Red if the command ends through the
    interpreter's teardown, or loses what it printed."""
    code = (
        "import threading, time; from ci.accuracy.__main__ import end_process; "
        "threading.Thread(target=time.sleep, args=(600,)).start(); "
        "print('report', end=''); end_process(1)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (1, "report")

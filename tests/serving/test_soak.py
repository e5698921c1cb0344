"""The soak of `ci/soak`: a short run, and proof that its verdict can be "wrong"."""

import json
from dataclasses import replace

import pytest

from ci.soak import __main__ as soak
from ci.soak.client import last_event
from ci.soak.random_requests import Draw, fault


def test_300_random_requests(capsys):
    """Red on any wrong token in what the four servers answer while they throw requests out, take
    them back, and are aborted or hung up on; on a request without an answer; on growing memory; on
    a load so light that none of it happens. About 80 s."""
    failed = soak.main(["--requests", "300", "--seed", "1"])
    printed = capsys.readouterr()
    assert not failed, printed.err
    totals = json.loads(printed.out)["totals"]
    assert totals["answered"] + totals["disconnected"] == 300 + len(soak.MODES)  # a last one each
    assert totals["ended by abort"]
    assert totals["ended by stop"]


@pytest.fixture(scope="module")
def asked(oracle):
    (drawn,) = Draw("any", vocab=oracle.config.vocab_size).wave(1)
    return replace(drawn, new=4, stops=[], ending="")


@pytest.fixture(scope="module")
def output(asked, greedy):
    return greedy(asked.prompt, 4)


def fault_in(oracle, request, output, ended="length"):
    answer = {"output_ids": output, "meta_info": {"finish_reason": {"type": ended}}}
    return fault(request, answer, oracle)


def test_right_answers_pass(oracle, asked, output):
    """Else every soak is red; and the oracle's own first choices must not be faults."""
    stopped = replace(asked, stops=[output[2]])
    aborted = replace(stopped, ending="abort")
    assert output[2] not in output[:2], "choose another seed"
    assert fault_in(oracle, asked, output) is None
    assert fault_in(oracle, stopped, output[:3], "stop") is None
    assert fault_in(oracle, aborted, output[:2], "abort") is None
    assert fault_in(oracle, aborted, output[:3], "abort") is None  # in the step that says the stop
    assert fault_in(oracle, aborted, [], "abort") is None


def test_wrong_answers_are_faults(oracle, asked, output):
    """A verdict that no longer reads some of the answer lets the soak pass whatever happens."""
    wrong = [*output[:2], output[2] ^ 1, output[3]]
    aborted = replace(asked, ending="abort")
    assert "token 2 of the output" in fault_in(oracle, asked, wrong)
    assert "token 2 of the output" in fault_in(oracle, aborted, wrong[:3], "abort")
    assert "3 of 4 tokens" in fault_in(oracle, asked, output[:3])
    assert "ended by abort" in fault_in(oracle, asked, output[:3], "abort")
    assert "ended by stop" in fault_in(oracle, asked, output, "stop")
    assert "ended by length" in fault_in(oracle, replace(asked, stops=[output[3]]), output)
    assert "after a stop token" in fault_in(oracle, replace(asked, stops=[output[1]]), output)


def test_streams_that_take_tokens_back_are_faults():
    """A stream must only grow, end once, and end with what it showed before."""
    whole = events([5], [5, 6])
    unfinished = whole.replace("length", "").replace('{"type": ""}', "null")
    assert last_event(whole)["output_ids"] == [5, 6]
    for broken in (events([5, 7], [5, 6]), whole + whole, unfinished, "data: [DONE]", ""):
        with pytest.raises(ValueError, match="a stream that"):
            last_event(broken)


def events(*outputs):
    reasons = [*[None] * (len(outputs) - 1), {"type": "length"}]
    bodies = [
        {"output_ids": output, "meta_info": {"finish_reason": reason}}
        for output, reason in zip(outputs, reasons, strict=True)
    ]
    return "".join(f"data: {json.dumps(body)}\n\n" for body in bodies) + "data: [DONE]\n\n"

"""`ci/accuracy` against a running server, with local questions: the path of the real suites."""

import json
import subprocess
import sys

import pytest

from sglang_longcat.assets import nano
from tests import ROOT, harness


@pytest.fixture(scope="module")
def base_url():
    with harness.server(nano(), max_total_tokens=16384) as running:
        yield running.base_url


def accuracy(*words):
    command = [sys.executable, "-m", "ci.accuracy", *words]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=300, cwd=ROOT
    )


def test_local_suites(base_url, tmp_path):
    """Red if lm-eval and our server stop understanding each other: chat answers with sampling
    options, and scores of given continuations from echoed logprobs."""
    out = tmp_path / "report"
    done = accuracy("--suite", "nano_names,nano_choices", "--base-url", base_url, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [(row["gate"], row["sample"]) for row in rows] == [
        ("nano_names", "16 questions"),
        ("nano_choices", "16 questions"),
    ]
    assert out.with_suffix(".md").read_text().count("| pass |") == 2


def test_without_lm_eval(base_url):
    """The message says what to install, and where nothing needs to be."""
    code = (
        "import sys; sys.modules['lm_eval'] = None; from ci.accuracy.__main__ import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["--suite", "gsm8k", "--base-url", base_url]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert 'pip install "sglang-longcat[eval]"' in done.stderr


def test_nano_suite_of_a_running_server(base_url, tmp_path):
    """The command of the report: mistakes with their numbers, then the server's gates."""
    out = tmp_path / "report"
    done = accuracy("--suite", "nano", "--base-url", base_url, "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mistake no EOS rule" not in out.with_suffix(".md").read_text()
    assert done.stdout.count("With a known mistake") == 4
    assert done.stdout.count("FAIL") > 8

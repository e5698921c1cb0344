"""What SGLang's imports print does not bury the doctor's table, and is kept where it matters."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from sglang_longcat.cpu.environment import CPU_ENV

# One line by each way that SGLang's imports use, and two of a child process.
NOISE = """
    import logging, os, subprocess, sys, warnings
    def make_noise():
        warnings.warn("by warnings")
        logging.basicConfig(format="%(message)s")
        logging.warning("by logging")
        print("by print")
        os.write(1, b"from C\\n")
        os.write(2, b"from C, an error\\n")
        subprocess.run(["sh", "-c", "echo by a child; echo an error of it >&2"], check=True)
"""
LINES = ("by warnings", "by logging", "by print", "from C\n", "from C, an error", "by a child")


def python(code, *words):
    """In a process of its own, because pytest replaces the ways of printing in this one."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *words],
        env={**os.environ, **CPU_ENV, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=400,  # importing SGLang takes 15 s, and 180 s were seen beside a load of 19
        check=False,
    )


def test_every_way_of_printing_is_caught():
    """Descriptors and log handlers lead where they led, before and after."""
    code = """
    from sglang_longcat.doctor import quiet
    print("before")
    with quiet.capture() as captured:
        make_noise()
    print("after")
    logging.warning("later")
    print(captured.text, file=sys.stderr)
    """
    done = python(NOISE + code)
    assert done.stdout == "before\nafter\n"
    later, _, captured = done.stderr.partition("\n")
    assert later == "later"
    assert [line for line in (*LINES, "an error of it") if line not in captured] == []


@pytest.mark.parametrize("error", ["ImportError", "SystemExit"])
def test_an_error_shows_what_came_before_it(error):
    code = f"""
    from sglang_longcat.doctor import quiet
    with quiet.capture():
        make_noise()
        raise {error}("the error")
    """
    done = python(NOISE + code)
    assert (done.returncode, done.stdout) == (1, "")
    assert [line for line in LINES if line not in done.stderr] == []
    assert done.stderr.rstrip().endswith("the error")


@pytest.mark.parametrize(
    ("finding", "words", "status", "shown"),
    [
        ("ok('plugin', 'registered')", (), 0, False),
        ("ok('plugin', 'registered')", ("--verbose",), 0, True),
        ("error('plugin', 'no hook')", (), 1, True),
    ],
)
def test_when_the_doctor_shows_it(finding, words, status, shown):
    """On request, and if the software is broken: what was printed may say why."""
    code = f"""
    from sglang_longcat.doctor import software
    def check():
        make_noise()
        return [software.Finding.{finding}]
    software.check = check
    from sglang_longcat.__main__ import main
    sys.exit(main())
    """
    done = python(NOISE + code, "doctor", *words)
    assert done.returncode == status
    assert ("by logging" in done.stderr) is shown
    assert ("from C" in done.stdout + done.stderr) is shown
    assert "plugin" in done.stdout


def test_the_report_is_all_that_is_printed():
    """Red if SGLang finds a new way to print while it is imported."""
    done = python("from sglang_longcat.__main__ import main; main()", "doctor", "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout)["healthy"]

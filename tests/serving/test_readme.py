"""The commands of README's console blocks work: each is run, or parsed by what it would call.

A new command needs a line in CHECKS, so none slips in unverified.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from ci.accuracy import __main__ as accuracy
from tests import ROOT
from tests.harness import Server, server

MODEL = "meituan-longcat/LongCat-Flash-Lite"


def commands() -> list[str]:
    """What stands behind `$ ` in console blocks, continued lines joined, comments removed."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = [one for block in blocks for one in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [re.sub(r"\s+# .*", "", one).strip() for one in found]


@pytest.fixture(scope="module")
def http(checkpoint: Path) -> Server:
    with server(checkpoint) as running:
        yield running


def make(command: str, _: Server) -> None:
    """The target exists and its recipe expands; CI itself runs `make test`."""
    subprocess.run(["make", "-n", *shlex.split(command)[1:]], cwd=ROOT, check=True, timeout=60)


def install(command: str, _: Server) -> None:
    """The extra exists. test_wheel installs the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"\[(\w+)\]", command):
        assert extra in project["optional-dependencies"]


def launch(command: str, http: Server) -> None:
    """SGLang's parser takes the flags; `http` was started the same way, with a small checkpoint."""
    from sglang.srt.server_args import prepare_server_args

    python, dash_m, module, *flags = shlex.split(command)
    assert (python, dash_m, module) == ("python", "-m", "sglang.launch_server")
    assert prepare_server_args(flags).model_path == MODEL


def request(command: str, http: Server) -> None:
    """Sent to a running server as it stands, but for the port."""
    words = shlex.split(command)
    url, body = words[1], json.loads(words[words.index("-d") + 1])
    sent = urllib.request.Request(
        url.replace("http://127.0.0.1:30000", http.base_url),
        data=json.dumps({**body, "max_tokens": 4}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(sent, timeout=60) as response:
        assert json.load(response)["choices"][0]["message"]["content"]


def script(command: str, _: Server) -> None:
    """The command's own parser takes the arguments."""
    _, _, module, *arguments = shlex.split(command)
    assert module == "ci.accuracy"
    accuracy._parser().parse_args(arguments)


CHECKS: dict[str, Callable[[str, Server], None]] = {
    "make ": make,
    "pip install ": install,
    "python -m sglang.launch_server ": launch,
    "curl ": request,
    "python -m ci.accuracy": script,
}


@pytest.mark.parametrize("command", commands())
def test_command(command: str, http: Server) -> None:
    check = next((CHECKS[start] for start in CHECKS if command.startswith(start)), None)
    assert check is not None, f"no check for `{command}`: add one to CHECKS"
    check(command, http)


def test_readme_is_short_enough_to_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 210
    assert len(commands()) >= 7

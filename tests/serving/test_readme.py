"""The commands in console blocks of README and docs work: each is run, or parsed by what it calls.

A new command needs a line in CHECKS, so none slips in unverified.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import disaggregation
from benchmarks.conversations import __main__ as conversations
from ci.accuracy import __main__ as accuracy
from sglang_longcat import __main__ as cli
from sglang_longcat.cpu.environment import CPU_ENV
from sglang_longcat.recipes import DIRECTORY, find
from tests import ROOT
from tests.harness import Server, server

MODEL = "meituan-longcat/LongCat-Flash-Lite"
# Not `docs/observability.md`: its commands profile a GPU.
DOCUMENTS = (
    "README.md",
    "docs/accuracy.md",
    "docs/recipes.md",
    "docs/quantisation.md",
    "docs/agents.md",
)


def commands(document: str) -> list[str]:
    """What stands behind `$ ` in console blocks, continued lines joined, comments removed."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [re.sub(r"\s+# .*", "", line).strip() for line in lines]


@pytest.fixture(scope="module")
def http(checkpoint: Path) -> Server:
    """Started with the first command of the README, in a shell without the CPU's variables."""
    shell = ["env", *(word for name in CPU_ENV for word in ("-u", name))]
    command = [*shell, sys.executable, "-m", "sglang_longcat", "serve", "--recipe", "cpu-tiny"]
    with server(checkpoint, command=command, spawn=True, timeout=400) as running:
        yield running


def test_serve_says_what_it_starts_and_starts_it(http: Server) -> None:
    """Recipe, switches and the flags of the harness, then our model class."""
    config = DIRECTORY / "cpu-tiny.yaml"
    started = f"-m sglang.launch_server --config {config} --model-path "
    assert started in http.log
    assert all(f"export {name}={value}" in http.log for name, value in CPU_ENV.items())
    assert "cpu-tiny, as you named it" in http.log
    assert http.log.index(started) < http.log.index("is active: LongCat-Flash-Lite")


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

    python, dash_m, module, *flags = shlex.split(command.replace("DIRECTORY", MODEL))
    assert (python, dash_m, module) == ("python", "-m", "sglang.launch_server")
    assert prepare_server_args(flags).model_path == MODEL


def serve(command: str, _: Server) -> None:
    """It finds a recipe for a machine that has what any of them needs. `http` was started so."""
    words = shlex.split(command.removesuffix("&").replace("DIRECTORY", MODEL))[1:]
    other = [] if "--gpu" in words else ["--gpu", "H200", "--gpus", "8"]
    assert cli.main([*words, *other]) == 0


def bench(command: str, _: Server) -> None:
    """The script takes the variables; test_bench runs it."""
    variable, script, *_arguments = shlex.split(command)
    assert f"${{{variable.partition('=')[0]}:-" in (ROOT / script).read_text()


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


def benchmark(command: str, _: Server) -> None:
    """The benchmark's own parser takes the arguments; a test beside this one runs it."""
    module, *arguments = shlex.split(command)[2:]
    parse = {"benchmarks.conversations": conversations, "benchmarks.disaggregation": disaggregation}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [module, *arguments])
        parse[module].parse()


def router(command: str, _: Server) -> None:
    """It is no package of ours: its addresses are those of the two servers before it."""
    words = shlex.split(command)
    url, port = words[words.index("--prefill") + 1 :][:2]
    given = find("h200-tp1-prefill").flags
    assert int(port) == given.get("disaggregation_bootstrap_port", disaggregation.BOOTSTRAP_PORT)
    starts = [line for line in commands("docs/recipes.md") if "--disaggregation-transfer" in line]
    ports = {shlex.split(line)[-1] for line in starts}
    assert {url[-5:], words[words.index("--decode") + 1][-5:]} == ports


def plugin(command: str, _: Server) -> None:
    """The same for `sglang-longcat`."""
    cli._parser().parse_args(shlex.split(command)[1:])


CHECKS: dict[str, Callable[[str, Server], None]] = {
    "make ": make,
    "pip install ": install,
    "python -m sglang.launch_server ": launch,
    "CONCURRENCY=": bench,
    "curl ": request,
    "python -m sglang_router.": router,
    "python -m ci.accuracy": script,
    "python -m benchmarks.": benchmark,
    "sglang-longcat serve": serve,
    "sglang-longcat ": plugin,
}


@pytest.mark.parametrize(
    ("document", "command"),
    [(document, command) for document in DOCUMENTS for command in commands(document)],
)
def test_command(document: str, command: str, http: Server) -> None:
    plain = re.sub(r"^(?:(?:CUDA|LONGCAT)_[A-Z_]+=\S+ )+", "", command)
    check = next((CHECKS[start] for start in CHECKS if plain.startswith(start)), None)
    assert check is not None, f"no check for `{command}` of {document}: add one to CHECKS"
    check(plain, http)


def test_readme_is_short_enough_to_read() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110
    kinds = {start for start in CHECKS for line in commands("README.md") if line.startswith(start)}
    assert len(kinds) >= 5


def test_moved_commands_are_still_found() -> None:
    """A console block that lost its fence would check nothing."""
    assert [len(commands(document)) for document in DOCUMENTS[1:]] == [3, 17, 6, 2]

"""`sglang-longcat serve`: what it runs, what it says about it, and what it refuses.

The choice itself is tested in tests/unit/recipes, a server that it starts in tests/serving.
"""

import json
import os
import re
import sys

import pytest

from sglang_longcat import __main__ as cli
from sglang_longcat import serve
from sglang_longcat.assets import NANO
from sglang_longcat.cpu.environment import CPU_ENV, tp_env
from sglang_longcat.doctor import machine
from sglang_longcat.doctor.machine import UNLIMITED, Device, Machine
from sglang_longcat.recipes import DIRECTORY
from sglang_longcat.serve import flags
from sglang_longcat.testing.tiny import TinyOptions, write_tiny

GIB = 1 << 30
H200 = Device("NVIDIA H200", total=140 * GIB, free=int(139.1 * GIB))
NAMED = ("cpu-nano", "--model-path", str(NANO))
FP8 = "meituan-longcat/LongCat-Flash-Lite-FP8"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("LONGCAT_NGRAM_TABLES", "LONGCAT_NGRAM_TABLE_DTYPE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def here(monkeypatch):
    """here(*GPUs): this machine has these."""

    def have(*gpus):
        found = Machine(gpus=gpus, driver="580", host=500 * GIB, memlock=UNLIMITED)
        monkeypatch.setattr(machine, "inspect", lambda: found)

    have()
    return have


@pytest.fixture
def run(capfd):
    """run(*words): (exit status, commands on stdout, reasons on stderr)."""

    def call(*words):
        status = cli.main(["serve", *words])
        out, err = capfd.readouterr()
        return status, out.splitlines(), err

    return call


def command(recipe, *further):
    file = DIRECTORY / f"{recipe}.yaml"
    return " ".join([sys.executable, "-m sglang.launch_server --config", str(file), *further])


def test_chooses_for_a_described_machine(run):
    status, lines, reasons = run("--gpu", "H200", "--gpus", "8", "--host-memory", "512")
    assert (status, lines) == (0, [command("h200-tp2-ep2")])
    assert "2 x H200, 139 GiB; this machine has 8: --dp-size 4 serves 4 replicas" in reasons
    assert re.search(r"checkpoint +bf16, 127.7 GiB", reasons)
    assert re.search(r"[\d,]{9} tokens of KV cache", reasons)
    assert re.search(r"measured +two H200", reasons)


def test_chooses_for_the_checkpoint_and_goal(run):
    """A published name needs no download. A goal without a recipe is said."""
    words = ("--gpu", "H100-80G", "--model-path", FP8, "--goal", "latency")
    status, lines, reasons = run(*words)
    assert (status, lines[-1]) == (0, command("h100-tp1-fp8"))
    assert lines[0] == "export LONGCAT_NGRAM_TABLES=host"
    assert re.search(r"goal +balanced: no recipe for latency fits", reasons)
    assert re.search(r"measured +no", reasons)


@pytest.mark.parametrize(("host", "replicas"), [("512", 8), ("200", 3), ("80", None)])
def test_advises_as_many_replicas_as_host_memory_holds(run, host, replicas):
    """61 GiB of tables for each."""
    words = ("--gpu", "H100-80G", "--gpus", "8", "--host-memory", host, "--model-path", FP8)
    _, _, reasons = run(*words)
    assert "this machine has 8" in reasons
    assert re.findall(r"--dp-size (\d+)", reasons) == ([str(replicas)] if replicas else [])


def test_user_wins(run, monkeypatch):
    """Over flags and switches of the recipe, and is told so."""
    monkeypatch.setenv("LONGCAT_NGRAM_TABLES", "auto")
    words = ("--tool-call-parser", "longcat", "--context-length=8192", "--port", "31000")
    status, lines, reasons = run("--gpu", "H100-80G", *words)
    typed = "--tool-call-parser longcat --context-length=8192 --port 31000"
    assert (status, lines[-1]) == (0, command("h100-tp1-balanced", typed))
    assert lines[0] == "export LONGCAT_NGRAM_TABLES=auto"
    assert "--context-length 8192, instead of the recipe's 32768" in reasons
    assert "LONGCAT_NGRAM_TABLES=auto, instead of the recipe's host" in reasons
    assert re.search(r"--port 31000 *\n", reasons)


@pytest.mark.parametrize("words", [("h200-tp1-fp8-latency",), ("--recipe", "h200-tp1-fp8-latency")])
def test_a_named_recipe_is_taken_with_a_warning(run, here, words):
    status, lines, reasons = run(*words, "--print")
    assert (status, lines) == (0, [command("h200-tp1-fp8-latency")])
    assert "as you named it" in reasons
    assert re.search(r"WARNING +needs 1 GPU, this machine has none", reasons)


def test_a_file_of_the_users_own(run, here, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model-path: somewhere\n")
    status, lines, reasons = run(str(file), "--print")
    assert (status, lines) == (0, [f"{sys.executable} -m sglang.launch_server --config {file}"])
    assert "a file of your own" in reasons


def test_runs_what_it_prints(run, here, monkeypatch):
    """In the user's environment with the recipe's switches, without what the choice itself set."""
    for name in CPU_ENV:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KEPT", "1")
    started = []
    monkeypatch.setattr(os, "execvpe", lambda *call: started.append(call))
    here(H200)
    _, lines, _ = run("--goal", "throughput")
    [(python, words, variables)] = started
    assert (python, " ".join(words)) == (sys.executable, lines[-1])
    assert lines == ["export LONGCAT_NGRAM_TABLES=host", command("h200-tp1-throughput")]
    assert variables["LONGCAT_NGRAM_TABLES"] == "host"
    assert variables["KEPT"] == "1"
    assert not CPU_ENV.keys() & variables.keys()


@pytest.mark.parametrize("words", [("--print",), ("--gpu", "H200")])
def test_runs_nothing(run, here, monkeypatch, words):
    monkeypatch.setattr(os, "execvpe", lambda *call: pytest.fail("started"))
    here(H200)
    assert run(*words)[0] == 0


def test_cpu(run, here, tmp_path):
    """LongCat-nano comes with the package. A rank has a core of its own."""
    status, lines, _ = run("cpu-nano", "--print")
    assert (status, lines[-1]) == (0, command("cpu-nano", "--model-path", str(NANO)))
    assert [line.split("=")[0] for line in lines[:-1]] == [f"export {name}" for name in CPU_ENV]
    tiny = write_tiny(tmp_path / "tiny", TinyOptions(experts=4, zero_experts=2, topk=2, layers=1))
    status, lines, reasons = run("--model-path", str(tiny), "--tp", "2", "--print")
    assert (status, lines[-1]) == (0, command("cpu-tiny", "--model-path", str(tiny), "--tp 2"))
    assert {line.split("=")[0] for line in lines} >= {f"export {name}" for name in tp_env(2)}
    assert "cpu-tiny, chosen" in reasons
    file = tiny / "config.json"
    quant = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": quant}))
    status, lines, reasons = run("--model-path", str(tiny), "--print")
    assert (status, lines[-1]) == (0, command("cpu-tiny", "--model-path", str(tiny)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"no GPU, and on a CPU only small .*\n    sglang-longcat serve cpu-nano "),
        (("nope",), "no recipe 'nope'; expected a YAML file, or one of: cpu-nano, "),
        (("cpu-tiny",), "cpu-tiny names no model; expected --model-path DIR"),
        (("cpu-nano", "--goal", "latency"), "--goal latency chooses .* cpu-nano names one"),
        (("cpu-nano", "--recipe", "cpu-tiny"), "cpu-nano and --recipe cpu-tiny: expected one"),
        (("--gpus", "2"), "--gpus and --host-memory describe another machine; .* --gpu"),
        (("cpu-nano", "--gaol", "latency"), "unrecognized arguments: --gaol latency"),
        (("cpu-nano", "--port", "many"), "argument --port: invalid int value: 'many'"),
        (("cpu-nano", "--config", "x.yaml"), "--config: a recipe is such a file"),
        (("cpu-nano", "--config=x.yaml"), "--config: a recipe is such a file"),
        (("cpu-nano", "--tp-size", "0"), "--tp-size 0: expected 1 or more"),
        (("cpu-nano", "--mem-fraction-static", "1.5"), "expected a part of 1, say 0.9"),
        (("cpu-nano", "--context-length", "-5"), "--context-length -5: expected 1 or more"),
        (("cpu-nano", "--max-running-requests", "0"), "--max-running-requests 0: expected 1"),
        (("cpu-nano", "--nnodes", "2", "--node-rank", "2"), "--node-rank 2: expected 0 to 1"),
        ((*NAMED, "--context-length", "999999"), "999999, but config.json says max_position"),
        ((*NAMED, "--tp", "7"), "--tp 7, but config.json says num_attention_heads"),
        ((str(NANO),), f"{NANO} is a directory, no recipe; did you mean --model-path"),
        (("--gpu", "H200", "--model-path", "/none"), "/none is neither a directory nor a"),
        (("--gpu", "H100-80G", "--host-memory", "12"), "needs 61 GiB of host memory"),
    ],
)
def test_refuses(run, here, words, message):
    """With what is wrong, what was expected and what to do."""
    status, lines, error = run(*words, "--print")
    assert (status, lines) == (2, [])
    assert re.search(message, error, flags=re.DOTALL)


def test_a_wrong_switch_is_no_recipes_fault(run, monkeypatch):
    monkeypatch.setenv("LONGCAT_NGRAM_TABLES", "ssd")
    status, lines, error = run("--print", "--gpu", "H200")
    assert (status, lines) == (2, [])
    assert error.startswith("error: LONGCAT_NGRAM_TABLES='ssd': expected one of")


def test_sglangs_flags_after_two_dashes(run):
    status, lines, _ = run("--print", "--gpu", "H200", "--", "--port", "31000")
    assert (status, lines[-1]) == (0, command("h200-tp1-balanced", "--port 31000"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("serve", "--goal", "speed"), "invalid choice: 'speed'"),
        (("serve", "--gpu", "H300"), "invalid choice: 'H300'"),
        (("serve", "--gpu", "H200", "--gpus", "0"), "0: expected a positive integer"),
        (("serve", "--gpu", "H200", "--host-memory", "nan"), "nan: expected a size in GiB"),
        (("serve", "--model-path", ""), "it is empty: expected a directory"),
        (("doctor", "--model-path", ""), "it is empty: expected a directory"),
        (("doctor", "--tp", "0"), "0: expected a positive integer"),
        (("doctor", "--context", "-1"), "-1: expected a positive integer"),
        (("doctor", "--mem-fraction", "5"), "5: expected a part of 1"),
        (("estimate", "--mem-fraction", "-1"), "-1: expected a part of 1"),
        (("estimate", "--mem-fraction", "nan"), "nan: expected a part of 1"),
        (("estimate", "--model-path", ""), "it is empty: expected a directory"),
    ],
)
def test_refuses_unknown_values(capsys, words, message):
    """Red if a plan is made of a value that no server has, or if an empty variable of the shell
    names the published model."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(words)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_our_flags_are_not_sglangs():
    """A flag of a later SGLang that we would take from it. --model-path we hand on."""
    ours = cli._parser()._subparsers._group_actions[0].choices["serve"]._option_string_actions
    theirs = flags._sglang_parser(on_cpu=True)._option_string_actions
    assert set(ours) & set(theirs) == {"--model-path", "--model"}


def test_other_commands_take_no_further_flags(capsys):
    with pytest.raises(SystemExit):
        cli.main(["estimate", "--port", "31000"])
    assert "usage: sglang-longcat estimate" in capsys.readouterr().err


def test_published_names(monkeypatch):
    """Their configs, in their formats."""
    monkeypatch.setattr(serve, "locate", lambda model: pytest.fail("looked up"))
    assert serve._config(FP8).weight_format == "block-fp8"
    assert serve._config(FP8.removesuffix("-FP8")).weight_format == "bf16"

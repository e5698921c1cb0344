"""The doctor finds nothing on a healthy set-up, and names cause and remedy on a broken one."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from sglang_longcat import doctor
from sglang_longcat.checkpoint.locate import locate
from sglang_longcat.doctor import checkpoint, machine, placement
from sglang_longcat.doctor.machine import UNLIMITED, Device, Machine, check, inspect
from sglang_longcat.planning import estimate, sizing
from sglang_longcat.planning.plan import MemoryFlags
from sglang_longcat.testing.packed import Scheme, write_packed
from sglang_longcat.testing.tiny import TinyOptions, write_tiny
from tests.harness import run_python

OPTIONS = TinyOptions(experts=4, zero_experts=2, topk=2, layers=1, mtp=False)
GIB = 1 << 30
LITE = estimate.read_config(None)
# free: before a server has its CUDA context. SGLang found 78.5 and 139.1 GiB.
H100 = Device("NVIDIA H100 80GB HBM3", total=80 * GIB, free=int(79.2 * GIB), nvlinks=18)
H200 = Device("NVIDIA H200", total=141 * GIB, free=int(139.8 * GIB), nvlinks=18)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("doctor") / "intact", OPTIONS)


@pytest.fixture
def copy(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "model")


def statuses(findings):
    return {finding.name: str(finding.status) for finding in findings}


def text_of(findings, name):
    (finding,) = (finding for finding in findings if finding.name == name)
    return finding.text


def test_command(intact, tmp_path):
    """A healthy set-up, then three defects: a damaged shard, an environment without the plugin, and
    an SGLang that does not fit. In a process of its own, since the doctor applies the hooks."""
    damaged = shutil.copytree(intact, tmp_path / "damaged")
    shard = sorted(damaged.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    script = f"""
        import contextlib, io, json, sys
        from sglang_longcat.host import contract
        from sglang_longcat.__main__ import main
        from sglang_longcat.doctor import software

        def doctor(path):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = main(["doctor", "--json", "--model-path", path])
            report = json.loads(out.getvalue())
            print("doctor:", json.dumps([code, report["healthy"], [
                finding["name"] for finding in report["findings"] if finding["status"] == "error"
            ]]))

        doctor({str(intact)!r})
        doctor({str(damaged)!r})
        software._GROUP = "no.such.plugins"
        doctor({str(intact)!r})
        contract.ATTRIBUTES += (contract.Needs("environ:gone"),)
        doctor({str(intact)!r})
    """
    lines = re.findall(r"^doctor: (.*)$", run_python(script), flags=re.MULTILINE)
    assert [json.loads(line) for line in lines] == [
        [0, True, []],
        [1, False, ["checkpoint"]],
        [1, False, ["entry point"]],
        [1, False, ["SGLang"]],
    ]


def test_intact_checkpoint(intact):
    config, findings = checkpoint.check(intact)
    assert config is not None
    assert set(statuses(findings).values()) == {"ok"}


def test_four_bits(tmp_path):
    """Red if a 4-bit checkpoint is called something else, or one that is not served passes."""
    path = write_packed(tmp_path / "packed", Scheme("auto-round"), OPTIONS)
    config, findings = checkpoint.check(path)
    assert "auto-round, 4 bits, groups of 128, symmetric: names and shapes" in text_of(
        findings, "checkpoint"
    )
    assert config.quant.packed is not None
    raw = json.loads((path / "config.json").read_text())
    raw["quantization_config"]["bits"] = 2
    (path / "config.json").write_text(json.dumps(raw))
    config, [finding] = checkpoint.check(path)
    assert config is None
    assert "auto-round with 2 bits, which is not served" in finding.text


def test_four_bits_on_small_gpus():
    """Red if doctor plans a small GPU without its smaller reserve, or knows no recipe for it."""
    l40s = Device("NVIDIA L40S", total=45 * GIB, free=int(44.3 * GIB), nvlinks=0)
    here = Machine(gpus=(l40s,), driver="580", host=128 * GIB, memlock=UNLIMITED)
    assert placement.suggest(here, sizing.in_int4(LITE)).text == "48gb-tp1-int4"
    wanted = MemoryFlags(tokens_wanted=500_000)
    assert statuses(placement.check(here, sizing.in_int4(LITE), wanted))["KV cache"] == "ok"
    assert statuses(placement.check(here, sizing.in_fp8(LITE), wanted))["KV cache"] == "error"


def test_the_cuda_context_is_not_free():
    """Red if doctor promises a server the memory that its own CUDA context takes: 0.7 GiB."""
    memory = Machine(gpus=(H100,), driver="580", host=0, memlock=UNLIMITED).hardware().memory
    assert memory.gpu_free / GIB == pytest.approx(78.5, abs=0.01)
    assert memory.driver_total == H100.total


def test_another_model(copy):
    file = copy / "config.json"
    config = json.loads(file.read_text())
    for key in ("ngram_vocab_size_ratio", "emb_neighbor_num", "emb_split_num"):
        del config[key]
    file.write_text(json.dumps(config))
    config, findings = checkpoint.check(copy)
    assert config is None
    assert "not LongCat-Flash-Lite" in text_of(findings, "checkpoint")


def test_tokenizer_of_another_model(copy):
    """Tags that fall apart into bytes: the parsers and the n-gram ids would see other tokens."""
    file = copy / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if "arg_key" not in token["content"]
    ]
    file.write_text(json.dumps(tokenizer))
    _, findings = checkpoint.check(copy)
    assert text_of(findings, "tokenizer").startswith("<longcat_arg_key>, </longcat_arg_key>: ")


def test_other_end_of_text(copy):
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 3}))
    _, findings = checkpoint.check(copy)
    assert "</longcat_s> is 2, config.json says (3,)" in text_of(findings, "tokenizer")


def test_optional_files_are_warnings(copy):
    (copy / "chat_template.jinja").unlink()
    (copy / "generation_config.json").unlink()
    _, findings = checkpoint.check(copy)
    assert statuses(findings)["chat template"] == statuses(findings)["sampling"] == "warning"
    assert "$(sglang-longcat template)" in text_of(findings, "chat template")
    assert '"repetition_penalty": 1.06' in text_of(findings, "sampling")


def test_unknown_model():
    with pytest.raises(FileNotFoundError, match="neither a directory nor a downloaded model"):
        locate("/nonexistent/model")


def examined(*gpus, host=500 * GIB, memlock=UNLIMITED, tp=1, dp=1, fraction=None, context=32768):
    here = Machine(gpus=gpus, driver="580", host=host, memlock=memlock)
    flags = MemoryFlags(tp=tp, attention_dp=dp, mem_fraction=fraction, tokens_wanted=context)
    return placement.check(here, LITE, flags)


@pytest.fixture(autouse=True)
def no_switches(monkeypatch):
    for name in ("LONGCAT_NGRAM_TABLES", "LONGCAT_NGRAM_TABLE_DTYPE"):
        monkeypatch.delenv(name, raising=False)


def test_one_80_gb_gpu_takes_the_tables_to_the_host():
    findings = examined(H100)
    assert set(statuses(findings).values()) == {"ok", "info"}
    assert "58.50 GiB pinned" in text_of(findings, "placement")
    tokens = int(text_of(findings, "KV cache").split()[0].replace(",", ""))
    assert 100_000 < tokens < 140_000  # 140,000 were too many on a real one
    assert text_of(findings, "recipe") == "h100-tp1-balanced"


def test_fp8_rows_hold_more_tokens():
    """Red if doctor promises the tokens of another kind of rows."""
    here = Machine(gpus=(H200,), driver="580", host=500 * GIB, memlock=UNLIMITED)
    wanted = MemoryFlags(kv_dtype="fp8", tokens_wanted=32768)
    fp8, bf16 = (
        int(text_of(found, "KV cache").split()[0].replace(",", ""))
        for found in (
            placement.check(here, LITE, replace(wanted, kv_dtype=kind)) for kind in ("fp8", "bf16")
        )
    )
    assert fp8 == pytest.approx(bf16 * 1152 / 656, abs=2)


def test_two_gpus_keep_them():
    findings = examined(H200, H200, tp=2)
    assert "29.25 GiB in HBM" in text_of(findings, "placement")
    assert text_of(findings, "recipe") == "h200-tp2-ep2"


def test_replicas_have_the_tables_each_on_the_gpu_and_once_in_host_memory():
    """Two H200 had 1,258,233 tokens a replica, with 2 GiB less kept free."""
    findings = examined(H200, H200, tp=2, dp=2)
    assert "58.50 GiB in HBM" in text_of(findings, "placement")
    tokens = int(text_of(findings, "KV cache").split()[0].replace(",", ""))
    assert 1_100_000 < tokens < 1_258_233
    assert "on each replica" in text_of(findings, "KV cache")
    findings = examined(H100, H100, tp=2, dp=2, host=80 * GIB)  # enough for one copy
    assert "58.50 GiB pinned" in text_of(findings, "placement")
    for dp in (0, 3):
        assert "does not divide --tp 2" in text_of(examined(H200, H200, tp=2, dp=dp), "placement")


def test_container_without_memory_for_the_tables():
    findings = examined(H100, host=16 * GIB)
    assert statuses(findings) == {"placement": "error"}
    assert "16.0 GiB are" in text_of(findings, "placement")


def test_forced_placement_without_memory(monkeypatch):
    monkeypatch.setenv("LONGCAT_NGRAM_TABLES", "host")
    findings = examined(H200, host=16 * GIB, memlock=8 << 20)
    assert statuses(findings)["host memory"] == "error"
    assert statuses(findings)["locked memory"] == "warning"
    assert "memlock=-1" in text_of(findings, "locked memory")


def test_half_the_tables_in_fp8(monkeypatch):
    monkeypatch.setenv("LONGCAT_NGRAM_TABLE_DTYPE", "fp8")
    assert statuses(examined(H100, host=40 * GIB))["placement"] == "ok"


def test_context_that_does_not_fit(monkeypatch):
    monkeypatch.setenv("LONGCAT_NGRAM_TABLES", "device")
    findings = examined(H200, context=262144)
    assert statuses(findings)["KV cache"] == "error"
    assert "LONGCAT_NGRAM_TABLES=host" in text_of(findings, "KV cache")


def test_unreadable_switch(monkeypatch):
    monkeypatch.setenv("LONGCAT_NGRAM_TABLES", "ssd")
    assert "expected one of auto, device, host" in text_of(examined(H200), "placement")


def test_more_ranks_than_gpus():
    assert "--tp 2, but 1 GPUs" in text_of(examined(H200, tp=2), "placement")


def test_gpus_without_nvlink():
    pcie = Device("NVIDIA H100 PCIe", total=80 * GIB, free=78 * GIB)
    findings = check(Machine(gpus=(pcie, pcie), driver="580", host=GIB, memlock=GIB))
    assert statuses(findings)["NVLink"] == "warning"


def test_this_machine_can_be_read():
    here = inspect()
    assert here.host > GIB
    assert statuses(check(here))["GPU"] == ("ok" if here.gpus else "warning")


@pytest.mark.parametrize(
    ("visible", "free"), [(None, [8, 9]), ("1", [9]), ("", []), ("GPU-b", [9])]
)
def test_reads_the_gpus_that_cuda_will_see(monkeypatch, visible, free):
    class NoSuchLink(Exception):
        pass

    def link(handle, number):
        if number > 2:
            raise NoSuchLink
        return number < 2

    nvml = SimpleNamespace(
        NVML_NVLINK_MAX_LINKS=18,
        NVMLError=NoSuchLink,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-a": 0, "GPU-b": 1}[uuid],
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(total=10, free=8 + handle),
        nvmlDeviceGetName=lambda handle: "GPU",
        nvmlDeviceGetNvLinkState=link,
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices = list(machine._devices(nvml))
    assert [device.free for device in devices] == free
    assert all(device.nvlinks == 2 for device in devices)


def test_recipe_is_the_one_that_serve_would_choose():
    """Without one, what each candidate lacks."""
    assert text_of(examined(H100), "recipe") == "h100-tp1-balanced"
    old = Device("NVIDIA A100-SXM4-80GB", total=80 * GIB, free=79 * GIB)
    text = text_of(examined(old), "recipe")
    assert text.startswith("none. no recipe fits 1 x NVIDIA A100-SXM4-80GB")
    assert "h100-tp1-balanced: is for H100 or H800, this GPU is NVIDIA A100-SXM4-80GB" in text


def test_flags_that_contradict_the_checkpoint(intact):
    """Both are named. `intact` has 8 heads, 4,096 positions and no MTP layer."""
    here = Machine(gpus=(H100,) * 3, driver="580", host=500 * GIB, memlock=UNLIMITED)

    def problem(**flags):
        given = {"model_path": str(intact), "tp": 1, "attn_dp_size": 1, "mem_fraction": None}
        args = SimpleNamespace(
            **{**given, "context": None, "draft": False, "kv_cache_dtype": "auto", **flags}
        )
        return [f.text for f in doctor._of_checkpoint(args, here) if f.status == "error"]

    assert problem() == []
    [text] = problem(context=8192, tp=3)
    assert "--context 8192, but config.json says max_position_embeddings 4096" in text
    assert "--tp 3, but config.json says num_attention_heads 8" in text
    [text] = problem(draft=True)
    assert "holds no model.mtp.* tensors" in text


def test_checkpoint_of_another_format(copy):
    file = copy / "config.json"
    awq = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    file.write_text(json.dumps(json.loads(file.read_text()) | awq))
    config, findings = checkpoint.check(copy)
    assert config is None
    assert "weights are awq" in text_of(findings, "checkpoint")

"""The arithmetic agrees with what was measured of full-size SGLang, and with real files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from benchmarks import RESULTS
from sglang_longcat import __main__ as command
from sglang_longcat.config import LongcatConfig, QuantConfig
from sglang_longcat.planning import estimate, roofline, sizing
from sglang_longcat.planning.plan import MachineMemory, MemoryFlags, plan_memory
from sglang_longcat.quantisation.packed import PackedFormat
from sglang_longcat.testing.packed import Scheme, write_packed
from sglang_longcat.testing.tiny import TinyOptions, write_tiny

GIB = 1 << 30
LITE = estimate.read_config(None)
SMALL = {"experts": 4, "zero_experts": 2, "topk": 2, "layers": 1}


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("mtp", [False, True])
def test_weights_are_those_of_the_files(tmp_path, fp8, mtp):
    """Every tensor counted once, in the dtype it is stored in."""
    path = write_tiny(tmp_path / "tiny", TinyOptions(**SMALL, fp8=fp8, mtp=mtp))
    stored = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored += sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118
    assert sizing.weight_bytes(LongcatConfig.from_dir(path), mtp=mtp) == stored


@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize("name", ["auto-round", "awq", "compressed-tensors"])
def test_four_bit_weights_are_those_of_the_files(tmp_path, name, mtp):
    """Red if a value, scale or zero point of a 4-bit layer is not counted, or counted twice."""
    scheme = Scheme(name, 64, symmetric=name == "auto-round", mtp=True)
    path = write_packed(tmp_path / "tiny", scheme, TinyOptions(**SMALL, mtp=mtp))
    stored = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            stored += sum(tensors.get_tensor(n).nbytes for n in tensors.keys())  # noqa: SIM118
    assert sizing.weight_bytes(LongcatConfig.from_dir(path), mtp=mtp) == stored


def test_four_bit_weights_of_a_server():
    """Red if a rank is given the files' zero points, which a symmetric format does not need, or a
    packed kv_b_proj: 37 billion parameters in 4.125 bits, and 28 kv_b_proj in 16."""
    share = sizing.parts(sizing.in_int4(LITE))
    assert share.experts == LITE.n_routed_experts * 14 * 3 * 1024 * 3072 * 4.125 / 8
    whole, packed = sizing.parts(LITE), 28 * 8192 * 512 * 2
    assert share.copies == whole.copies == packed
    zeros = PackedFormat("awq", "awq", group_size=32, symmetric=False)
    quant = replace(sizing.in_int4(LITE).quant, packed=zeros)
    assert sizing.parts(replace(LITE, quant=quant)).experts / share.experts == 4.625 / 4.125


@pytest.mark.parametrize(
    ("gpu", "tokens"), [("RTX-5090-32G", 100_000), ("L40S-48G", 500_000), ("H100-80G", 1_500_000)]
)
@pytest.mark.parametrize("draft", [False, True])
def test_kv_cache_beside_four_bit_weights(gpu, tokens, draft):
    """Red if a 4-bit model with its tables in host memory leaves less than the recipes say."""
    choice = estimate.Choice(gpu, 1, "int4", "host", "bf16")
    row = estimate.estimate(LITE, choice, context=4096, batches=(1,), draft=draft)
    assert row.kv_tokens > tokens


def test_published_sizes():
    """In GiB: 128.1 on one H200 as SGLang counts it (0.1 of them buffers), 58.5 of tables, 69.5 of
    the rest; 31.5 KiB of KV cache a token."""
    whole = sizing.parts(LITE)
    assert (whole.tables + whole.without_tables) / GIB == pytest.approx(128.1, abs=0.15)
    assert sizing.table_bytes(LITE) / GIB == pytest.approx(58.5, abs=0.01)
    assert sizing.table_bytes(LITE) == 31_406_985_216 * 2
    assert sizing.kv_bytes_per_token(LITE) == 31.5 * 1024
    assert sizing.kv_bytes_per_token(LITE, "fp8") == 28 * 656
    assert sizing.kv_bytes_per_token(LITE, value_bytes=4) == 63 * 1024
    assert sizing.weight_bytes(sizing.in_fp8(LITE)) / 1e9 == pytest.approx(101, abs=1)


def test_what_drafting_adds():
    """Red if the MTP layer, its kv_b_proj in the form for decoding, the FP8 copy of the head or the
    MTP layer's KV rows are left out, or the copy where LONGCAT_DRAFT_HEAD takes it away. Ranks
    share the copy; eh_proj is whole on each."""
    layer = sizing.weight_bytes(LITE, mtp=True) - sizing.weight_bytes(LITE)
    copy = 131072 * 3072 + 1024 * 24 * 4
    kv_b = 32 * (128 + 128) * 512 * 2
    assert sizing.fp8_copy_bytes(131072, 3072) == copy
    assert sizing.draft_bytes(LITE) == layer + kv_b + copy
    assert sizing.draft_bytes(LITE, fp8_head=False) == layer + kv_b
    word = 131072 * 3072 * 2
    assert sizing.draft_bytes(LITE, own_embedding=False) == layer + kv_b + copy - word
    halves = 2 * sizing.draft_bytes(LITE, ranks=2) - sizing.draft_bytes(LITE)
    assert 2 * 3072 * 3072 * 2 < halves < 60e6  # eh_proj, and the latent projections
    assert sizing.kv_bytes_per_token(LITE, draft=True) == 31.5 * 1024 * 29 / 28
    assert sizing.kv_bytes_per_token(LITE, "fp8", draft=True) == 29 * 656


@pytest.mark.parametrize(("head", "gib"), [("auto", 1.33), ("bf16", 0.96)])
def test_a_plan_with_drafts(monkeypatch, head, gib):
    """Red if a plan for speculative decoding has the KV cache of one without."""
    monkeypatch.setenv("LONGCAT_DRAFT_HEAD", head)
    memory, flags = MachineMemory.of_gpu(139), MemoryFlags(tables="host", reserve_mb=6000)
    plain, drafting = (plan_memory(LITE, memory, replace(flags, draft=on)) for on in (False, True))
    assert (drafting.gpu_weights - plain.gpu_weights) / GIB == pytest.approx(gib, abs=0.01)
    room = plain.room.device - (drafting.gpu_weights - plain.gpu_weights)
    assert drafting.kv_tokens == room // (63 * 512 * 29 // 28)


def test_attention_dp_repeats_attention_embedding_and_tables():
    """94.75 GiB of weights on each of two H200 with the tables there; experts, dense MLPs and head
    stay split. A replica of two ranks has what two GPUs have of attention."""
    share = sizing.parts(LITE, ranks=2, attention_dp=2)
    assert (share.tables + share.without_tables) / GIB == pytest.approx(94.75, abs=0.25)
    wide = sizing.parts(LITE, ranks=4, attention_dp=2)
    two_ranks = sizing.parts(LITE, ranks=2)
    for part in ("tables", "embedding", "copies"):
        assert getattr(wide, part) == getattr(two_ranks, part)
    assert wide.experts * 2 == two_ranks.experts


def test_a_replica_reads_its_own_requests():
    """Twice the attention weights, half of the KV cache."""
    size = {"batch": 64, "ranks": 2}
    weights = [sizing.step_bytes(LITE, **size, context=0, attention_dp=dp) for dp in (1, 2)]
    whole = [sizing.step_bytes(LITE, **size, context=4096, attention_dp=dp) for dp in (1, 2)]
    assert 0.5 < (weights[1] - weights[0]) / 1e9 < 1.1
    assert whole[1] - weights[1] == pytest.approx((whole[0] - weights[0]) / 2)


@pytest.mark.parametrize("fp8", [False, True])
def test_estimate_takes_the_format_of_the_checkpoint(tmp_path, capsys, fp8):
    """Its own, without --dtype. A flag that contradicts it is an error that names both."""
    path = write_tiny(tmp_path / "tiny", TinyOptions(**SMALL, fp8=fp8))
    stored, other = ("fp8", "bf16") if fp8 else ("bf16", "fp8")
    words = ["estimate", "--model-path", str(path), "--gpu", "H200", "--json"]
    assert command.main(words) == command.main([*words, "--dtype", stored]) == 0
    assert f'"dtype": "{stored}"' in capsys.readouterr().out
    assert command.main([*words, "--dtype", other, "--tp", "3", "--context", "5000"]) == 2
    error = capsys.readouterr().err
    full = {"bf16": "bf16", "fp8": "block-fp8"}[stored]
    assert f"--dtype {other}, but quantization_config in config.json says {full}" in error
    assert "--tp 3, but config.json says num_attention_heads 8" in error
    assert "--context 5000, but config.json says max_position_embeddings 4096" in error


def test_estimate_refuses_drafts_without_the_mtp_layer(tmp_path, capsys):
    path = write_tiny(tmp_path / "tiny", TinyOptions(**SMALL, mtp=False))
    words = ["estimate", "--model-path", str(path), "--gpu", "H200", "--json"]
    assert command.main(words) == 0
    assert command.main([*words, "--draft"]) == 2
    assert "holds no model.mtp.* tensors" in capsys.readouterr().err


def test_format_without_a_layout_table():
    """Red if an unknown format is counted as bf16."""
    config = replace(LITE, quant=QuantConfig(method="awq", block=None, ignored=()))
    with pytest.raises(ValueError, match="says awq; expected one of bf16, block-fp8"):
        sizing.parts(config)


@pytest.mark.parametrize("weight_format", sizing.FORMATS)
def test_published_model_in_every_format(weight_format):
    assert sizing.in_format(LITE, weight_format).weight_format == weight_format


def test_tables_of_a_rank():
    assert sizing.table_bytes(LITE, ranks=8) * 8 == sizing.table_bytes(LITE)
    rows = sum(LITE.ngram.rows)
    assert sizing.table_bytes(LITE, "fp8") == rows * (256 + 16)
    assert sizing.table_bytes(LITE, "fp8", ranks=2) == rows * (128 + 16)


@pytest.mark.parametrize(
    ("batch", "measured"), [(1, 2.4), (4, 8.2), (8, 15.2), (16, 26.8), (32, 42.9), (64, 58.5)]
)
def test_traffic_of_experts(batch, measured):
    """GB a step. The measured figures are in-tree SGLang's, which also computes identity slots, on
    expert 0; we do not. All experts together: 67.6."""
    one_expert = sizing.parts(LITE).experts / 256
    ours = sizing.step_bytes(LITE, batch=batch, context=0) - sizing.parts(LITE).rest
    in_tree = ours + one_expert * (1 - 1 / 32) ** batch
    assert in_tree / 1e9 == pytest.approx(measured, rel=0.02)


def test_traffic_of_a_step():
    """5.9 GB at any batch size, and 132 MB of KV cache for a request of 4,096 tokens. At batch 1
    in-tree SGLang reads 8.3 GB (one expert more, see above), we 8.1."""
    assert sizing.parts(LITE).rest / 1e9 == pytest.approx(5.9, rel=0.01)
    assert sizing.parts(LITE).experts / 1e9 == pytest.approx(67.6, rel=0.01)
    one_expert = sizing.parts(LITE).experts / 256 / 1e9
    ours = sizing.step_bytes(LITE, batch=1, context=0) / 1e9
    assert ours + one_expert * 31 / 32 == pytest.approx(8.3, rel=0.01)
    with_cache = sizing.step_bytes(LITE, batch=1, context=4096) / 1e9
    assert with_cache - ours == pytest.approx(0.132, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "tp", "fraction", "table_gib", "measured"),
    [
        ("H200", 1, 0.95, 58.5, 134_634),
        ("H200", 1, 0.93, 0.8, 1_964_354),  # tables as good as in host memory
        ("H100-80G", 1, 0.95, 0.8, 139_930),
        ("H200", 2, 0.95, 29.25, 2_230_619),
    ],
)
def test_kv_tokens(gpu, tp, fraction, table_gib, measured):
    """What SGLang's log said, within 5 %."""
    memory = MachineMemory.of_gpu(roofline.GPUS[gpu].memory)
    flags = MemoryFlags(tp=tp, mem_fraction=fraction, tables="device")
    room = plan_memory(LITE, memory, flags).room
    tokens = room.kv_tokens_beside(int(table_gib * GIB))
    assert tokens == pytest.approx(measured, rel=0.05)


def real_run(ranks):
    """Batches of a real run with the tables in host memory."""
    root = RESULTS / "h200" / "scaling"
    return json.loads((root / f"tp{ranks}-ep{ranks}.json").read_text())["results"]["host"]


def test_bound_is_below_every_measured_step():
    """Red if a real run is faster than the lower bound; one H200 and two."""
    for ranks in (1, 2):
        for row in real_run(ranks):
            bound = roofline.step_seconds(
                roofline.GPUS["H200"], LITE, batch=row["batch"], context=4096, ranks=ranks
            )
            assert 0.2 * row["tpot_ms"] < 1e3 * bound < row["tpot_ms"]


def test_busiest_rank():
    """A single rank reads all experts that the batch reaches. Of eight ranks the busiest reads more
    than an eighth, and all of its 32 experts if the batch is large."""
    all_experts = roofline.busiest_rank_experts(LITE, batch=8, ranks=1)
    assert all_experts == pytest.approx(sizing.experts_read(LITE, 8), rel=0.01)
    busiest = roofline.busiest_rank_experts(LITE, batch=8, ranks=8)
    assert all_experts / 8 < busiest < all_experts / 2
    assert roofline.busiest_rank_experts(LITE, batch=400, ranks=8, draws=8) == 32


def test_projection_meets_the_measured_step_of_two_gpus():
    """From one H200 to two within 8 %, with any all-reduce time that is possible at 48 to 384 KB on
    NVLink; on one GPU it is the measurement. Not at batch 1, where the host bounds two GPUs."""
    gpu = roofline.GPUS["H200"]
    one_gpu, two_gpus = (
        {row["batch"]: row["tpot_ms"] for row in real_run(ranks)} for ranks in (1, 2)
    )
    for batch in (8, 30, 64):
        size = {"batch": batch, "context": 4096, "one_gpu": one_gpu[batch] / 1e3}
        same = roofline.projected_seconds(gpu, LITE, **size, ranks=1, all_reduce=0.0)
        assert 1e3 * same == pytest.approx(one_gpu[batch])
        for us in (3, 10):
            step = roofline.projected_seconds(gpu, LITE, **size, ranks=2, all_reduce=us / 1e6)
            assert 1e3 * step == pytest.approx(two_gpus[batch], rel=0.08)


def test_arithmetic_bounds_the_gpu_without_much():
    """H20 and H200 read equally fast; at batch 400 only the former computes for longer."""
    steps = {
        name: roofline.step_seconds(roofline.GPUS[name], LITE, batch=400, context=4096)
        for name in ("H20-141G", "H200")
    }
    assert steps["H20-141G"] > 1.5 * steps["H200"]
    flops = sizing.step_flops(LITE, batch=1, context=0)
    assert flops / 2e9 == pytest.approx(4.0, rel=0.02)  # active parameters without embeddings


def rows(capsys, *argv):
    assert command.main(["estimate", "--json", *argv]) == 0
    return json.loads(capsys.readouterr().out)


def test_host_tables_make_one_80_gb_gpu_possible(capsys):
    device, host = rows(capsys, "--gpu", "H100-80G")
    assert device["kv_tokens"] < 0
    assert device["tpot_ms"] == {}
    assert host["kv_tokens"] > 100_000
    assert host["host_gib"] == pytest.approx(58.5, abs=0.01)
    assert set(host["tpot_ms"]) == {"1", "8"}


def test_expects_what_the_plugin_keeps_free(capsys):
    """One H200 had 194,870 tokens with graphs of 30 rows, and 2,138,454 with host tables and graphs
    of 64. Here graphs have 256 rows and take 0.7 GiB more. A given fraction is not changed."""
    device, host = rows(capsys, "--gpu", "H200")
    assert 160_000 < device["kv_tokens"] < 194_870
    assert 2_100_000 < host["kv_tokens"] < 2_138_454
    small, _ = rows(capsys, "--gpu", "H200", "--mem-fraction", "0.93")
    assert small["kv_tokens"] < 50_000


def test_fp8_rows_of_the_kv_cache_hold_more_tokens(capsys):
    """1,152 / 656 = 1.76 times as many, and a step reads as many bytes less."""
    argv = ("--gpu", "H200", "--tables", "host", "--context", "131072", "--batch", "8")
    bf16, fp8 = rows(capsys, *argv, "--kv-cache-dtype", "auto", "fp8_e4m3")
    assert (bf16["choice"]["kv_dtype"], fp8["choice"]["kv_dtype"]) == ("bf16", "fp8")
    assert fp8["kv_tokens"] == pytest.approx(bf16["kv_tokens"] * 1152 / 656, abs=2)
    saved = 8 * 131072 * 28 * (1152 - 656) / (roofline.GPUS["H200"].bandwidth * 1e9)
    assert bf16["tpot_ms"]["8"] - fp8["tpot_ms"]["8"] == pytest.approx(saved, rel=0.01)


def test_attention_dp_multiplies_the_kv_cache(capsys):
    """Two H200 had 1,258,233 tokens a replica with a reserve of 2 GiB less. The host holds one copy
    of the tables."""
    sizes = ("--tp", "2", "8", "--attn-dp-size", "2", "8")
    kv_tokens = {
        (row["choice"]["tp"], row["choice"]["attention_dp"]): row["kv_tokens"]
        for row in rows(capsys, "--gpu", "H200", "--tables", "device", *sizes)
    }
    assert set(kv_tokens) == {(2, 2), (8, 2), (8, 8)}
    assert 1_100_000 < kv_tokens[2, 2] / 2 < 1_258_233
    [host] = rows(capsys, "--gpu", "H200", "--tables", "host", "--tp", "8", "--attn-dp-size", "8")
    assert host["host_gib"] == pytest.approx(58.5, abs=0.01)


def test_replicas_must_divide_the_ranks(capsys):
    assert command.main(["estimate", "--tp", "2", "--attn-dp-size", "3"]) == 2
    assert "--attn-dp-size [3] divides none of --tp [2]" in capsys.readouterr().err


def test_table_shows_what_does_not_fit(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert command.main(["estimate", "--gpu", "H100-80G", "--tp", "1", "2"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "x H100-80G" in line]
    assert ["does not fit" in line for line in lines] == [True, False, False, False]


def test_estimate_of_another_checkpoint(tmp_path, capsys):
    path = write_tiny(tmp_path / "tiny", TinyOptions(**SMALL, fp8=True))
    [row] = rows(capsys, "--model-path", str(path), "--gpu", "H200", "--tables", "device")
    assert row["choice"]["dtype"] == "fp8"
    assert row["weights_gib"] < 0.2


def test_bad_model_path_is_one_line(capsys):
    assert command.main(["estimate", "--model-path", "/nonexistent"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_estimate_needs_neither_sglang_nor_torch():
    """It answers on a laptop, at once."""
    script = (
        "import sys; from sglang_longcat.__main__ import main; main(['estimate']);"
        "assert not {'torch', 'sglang'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True)


def test_template_is_a_file(capsys):
    assert command.main(["template"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()

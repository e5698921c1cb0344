"""What cannot be served is refused while starting, before weights are read, with the way out.

Real engines show that the message reaches the user and how soon; every single flag and defect is
tested on its own function (files: tests/unit/checkpoint, config.json: tests/unit/test_config.py).
"""

import json
import shutil
import struct
import time
from types import SimpleNamespace

import pytest

from sglang_longcat.checkpoint.headers import INDEX_NAME
from sglang_longcat.config import ConfigError, LongcatConfig
from sglang_longcat.cpu.environment import tp_env
from sglang_longcat.host.refused_flags import UnsupportedFlag, refuse_unsupported
from sglang_longcat.ngram import embedding
from sglang_longcat.testing.tiny import TinyOptions, tiny_config, write_tiny
from tests import harness

SECONDS = 30  # a failed start takes 2-3; loading would be visible in the log anyway
OPTIONS = TinyOptions(experts=4, zero_experts=2, topk=2, layers=1, mtp=False)
LOADING = "Loading safetensors", "Multi-thread loading", "Load weight end"


@pytest.fixture(scope="session")
def intact(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("bad_start") / "intact", OPTIONS)


@pytest.fixture
def copy(intact, tmp_path):
    return shutil.copytree(intact, tmp_path / "model")


@pytest.fixture(scope="session", autouse=True)
def preloaded():
    """Start the harness's fork server, so that the first test does not pay for it."""
    harness._fork_server()


def refused_start(path, **server_args):
    """The error, with the log, of an engine that must not start."""
    start = time.monotonic()
    with (
        pytest.raises(harness.HarnessError) as error,
        harness.engine(path, timeout=SECONDS, **server_args),
    ):
        pass
    assert time.monotonic() - start < SECONDS
    text = str(error.value)
    assert "no answer within" not in text
    assert not [word for word in LOADING if word in text]
    return text


def edit_config(path, **changes):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def shard_of(path, tensor):
    return path / json.loads((path / INDEX_NAME).read_text())["weight_map"][tensor]


def rename_in_header(file, old, new):
    """Rename a tensor in place; the two names are of one length."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length].replace(f'"{old}"'.encode(), f'"{new}"'.encode())
    file.write_bytes(raw[:8] + header + raw[8 + length :])


TABLE = "model.ngram_embeddings.embedders.3.weight"


def test_missing_shard(copy):
    gone = shard_of(copy, TABLE)
    gone.unlink()
    text = refused_start(copy)
    assert "CheckpointError" in text
    assert gone.name in text
    assert "Download the named files again" in text


def test_truncated_shard(copy):
    file = shard_of(copy, TABLE)
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 1)
    text = refused_start(copy)
    assert f"{file.name}: truncated, {size - 1} bytes; its header says {size}" in text


def test_wrong_table_row_count(copy):
    """config.json asks for another ratio than the tables were built with."""
    edit_config(copy, ngram_vocab_size_ratio=OPTIONS.ratio + 1)
    text = refused_start(copy)
    rows = OPTIONS.ratio * OPTIONS.vocab + 7
    assert f"{TABLE}: expected [{rows + OPTIONS.vocab}, 64] BF16, found [{rows}, 64] BF16" in text


def test_missing_and_unexpected_tensor(copy):
    other = TABLE.replace("embedders.3", "embedders.Z")
    rename_in_header(shard_of(copy, TABLE), old=TABLE, new=other)
    text = refused_start(copy)
    assert f"missing tensors (1):\n    {TABLE} [" in text
    assert f"unexpected tensors (1):\n    {other} [" in text


def test_unknown_zero_expert_type(copy):
    edit_config(copy, zero_expert_type="constant")
    text = refused_start(copy)
    assert "zero_expert_type 'constant' is unknown: only 'identity' is supported" in text


def test_hidden_size_that_the_tables_cannot_share(copy):
    edit_config(copy, emb_split_num=5)
    text = refused_start(copy)
    assert "hidden_size 768 is not divisible by (emb_neighbor_num-1)*emb_split_num = 15" in text


def test_speculation_without_a_draft(intact):
    """Said before the target's weights are read, although the draft is loaded after them."""
    text = refused_start(intact, speculative_algorithm="NEXTN")
    assert "holds no model.mtp.* tensors" in text
    assert "name one with --speculative-draft-model-path" in text


def test_several_unsupported_flags_at_once(intact):
    """Each is named, and SGLang's own checks do not come first with a worse message."""
    text = refused_start(intact, is_embedding=True, moe_runner_backend="cutlass")
    assert (
        "UnsupportedFlag: sglang-longcat cannot serve LongCat-Flash-Lite with these flags" in text
    )
    assert "--is-embedding: " in text
    assert "--moe-runner-backend cutlass: " in text


def test_pipeline_parallel_wins_over_upstreams_assertion(intact):
    """SGLang asserts "not compatible with this model" after loading, without a way out."""
    text = refused_start(intact, pp_size=2, env=tp_env(2))
    assert "--pp-size 2: pipeline parallelism is not implemented; use --tp-size" in text
    assert "not compatible with this model" not in text


def test_ray_is_refused_where_the_flags_are_read(intact):
    """Its actors load no plugins: past this point SGLang's own class would serve."""
    text = refused_start(intact, use_ray=True)
    assert "sglang-longcat: --use-ray starts schedulers that load no plugins" in text
    assert "launch/ray/serve.py" in text


def arguments(**changes):
    """SGLang's own record, so that a renamed flag or a default that we refuse fails here."""
    from sglang.srt.server_args import ServerArgs

    return ServerArgs(model_path="none", **changes)


def test_default_flags_are_supported():
    refuse_unsupported(arguments())


def test_custom_logit_processors_without_speculation_are_supported():
    refuse_unsupported(arguments(enable_custom_logit_processor=True))


@pytest.mark.parametrize("algorithm", ["NEXTN", "EAGLE", "STANDALONE"])
@pytest.mark.parametrize("window", [2, 4, 13])
def test_supported_speculation(algorithm, window):
    """13 tokens and the 3 before them fill the N-gram cache's ring."""
    flags = {"speculative_eagle_topk": 1, "speculative_num_draft_tokens": window}
    refuse_unsupported(arguments(speculative_algorithm=algorithm, **flags))


NEXTN = {
    "speculative_algorithm": "NEXTN",
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 4,
}


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("--pp-size 2", {"pp_size": 2}),
        ("--enable-eplb", {"enable_eplb": True}),
        ("--ep-num-redundant-experts", {"ep_num_redundant_experts": 2}),
        ("--init-expert-location map.json", {"init_expert_location": "map.json"}),
        ("--ep-dispatch-algorithm static", {"ep_dispatch_algorithm": "static"}),
        ("embed_tokens", {"lora_target_modules": {"embed_tokens"}}),
        ("--enable-lora", {"enable_lora": True}),
        ("--lora-paths", {"lora_paths": ["adapter"]}),
        ("--moe-a2a-backend deepep", {"moe_a2a_backend": "deepep"}),
        ("--moe-runner-backend flashinfer_trtllm", {"moe_runner_backend": "flashinfer_trtllm"}),
        ("--speculative-algorithm EAGLE3", {"speculative_algorithm": "EAGLE3"}),
        ("--speculative-algorithm DFLASH", {"speculative_algorithm": "DFLASH"}),
        ("--speculative-eagle-topk 2", {**NEXTN, "speculative_eagle_topk": 2}),
        ("--speculative-num-draft-tokens 14", {**NEXTN, "speculative_num_draft_tokens": 14}),
        ("--speculative-ngram-max-bfs-breadth 10", {"speculative_algorithm": "NGRAM"}),
        ("--speculative-adaptive", {**NEXTN, "speculative_adaptive": True}),
        (
            "--enable-custom-logit-processor",
            {**NEXTN, "enable_custom_logit_processor": True},
        ),
        ("--dwdp-size 2", {"dwdp_size": 2}),
        ("--enable-two-batch-overlap", {"enable_two_batch_overlap": True}),
        ("--enable-pd-role-switch", {"enable_pd_role_switch": True}),
        ("--enable-pdmux", {"enable_pdmux": True}),
        ("--is-embedding", {"is_embedding": True}),
    ],
)
def test_unsupported_flag(flag, changes):
    """The message names the flag as typed and, after the colon, why and what to do."""
    with pytest.raises(UnsupportedFlag) as error:
        refuse_unsupported(arguments(**changes))
    (line,) = str(error.value).splitlines()[1:]
    assert flag in line
    assert ";" in line.partition(":")[2]


@pytest.mark.parametrize("runner", ["auto", "triton", "deep_gemm"])
def test_runners_that_skip_identity_slots(monkeypatch, runner):
    monkeypatch.setattr("sglang.srt.layers.deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM", True)
    refuse_unsupported(arguments(moe_runner_backend=runner))


def test_deep_gemm_where_it_does_not_run(monkeypatch):
    monkeypatch.setattr("sglang.srt.layers.deep_gemm_wrapper.ENABLE_JIT_DEEPGEMM", False)
    with pytest.raises(UnsupportedFlag, match=r"deep_gemm: .* wants a GPU from Hopper on; leave"):
        refuse_unsupported(arguments(moe_runner_backend="deep_gemm"))


def test_tables_that_do_not_divide_over_the_ranks(monkeypatch):
    """12 tables of hidden 768 are 64 columns wide: not over 3 ranks."""
    config = LongcatConfig.from_dict(tiny_config(OPTIONS))
    monkeypatch.setattr(embedding, "is_dp_attention_enabled", lambda: False)
    ranks = SimpleNamespace(tp_size=3, tp_rank=0)
    monkeypatch.setattr(embedding, "get_parallel", lambda: ranks)
    with pytest.raises(ConfigError, match=r"64 columns wide .* 3 tensor-parallel ranks.*--tp-size"):
        embedding.NgramEmbedding(config)

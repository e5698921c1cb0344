"""What cannot be served is refused while starting, before weights are read, with the way out.

Real engines show that the message reaches the user and how soon; every single flag and defect is
tested on its own function (flags: tests/unit/host/test_refused_flags.py, files:
tests/unit/checkpoint, config.json: tests/unit/test_config.py).
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
from sglang_longcat.ngram import embedding
from sglang_longcat.testing.packed import Scheme, write_packed
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


def test_a_trie_that_a_request_would_overflow(intact):
    """Without the refusal the server starts, and its first request ends it."""
    flags = {"speculative_ngram_max_bfs_breadth": 1, "speculative_ngram_capacity": 18}
    text = refused_start(intact, speculative_algorithm="NGRAM", **flags)
    assert "--speculative-ngram-capacity 18: " in text
    assert "set it to 19 at least" in text


def test_another_implementation_of_the_model(intact):
    """There our class and its checks do not exist, so the flag must be refused where it is read."""
    text = refused_start(intact, model_impl="transformers")
    assert "--model-impl transformers: another model class would serve" in text


def test_ray_is_refused_where_the_flags_are_read(intact):
    """Its actors load no plugins: past this point SGLang's own class would serve."""
    text = refused_start(intact, use_ray=True)
    assert "--use-ray: starts schedulers that load no plugins" in text
    assert "launch/ray/serve.py" in text


def test_a_format_that_is_not_served(copy):
    """SGLang would say that it does not know the method, or fail on its first weight."""
    edit_config(copy, quantization_config={"quant_method": "gptq", "bits": 8, "group_size": 128})
    text = refused_start(copy)
    assert "The checkpoint's weights are gptq with 8 bits, which is not served. Served are" in text


def test_a_format_that_the_checkpoint_does_not_have(intact):
    """SGLang would quantise bf16 while it loads, which nobody has tested with this model."""
    text = refused_start(intact, quantization="fp8")
    assert "--quantization fp8: the checkpoint's weights are unquantised; leave it out" in text


def test_a_packed_layer_without_its_scales(tmp_path):
    path = write_packed(tmp_path / "packed", Scheme("auto-round"), OPTIONS)
    name = "model.layers.0.self_attn.1.o_proj.scales"
    rename_in_header(shard_of(path, name), old=name, new=name.replace("scales", "scalez"))
    text = refused_start(path)
    assert f"missing tensors (1):\n    {name} [8, 768]" in text
    assert "unexpected tensors (1)" in text


def test_tables_that_do_not_divide_over_the_ranks(monkeypatch):
    """12 tables of hidden 768 are 64 columns wide: not over 3 ranks."""
    config = LongcatConfig.from_dict(tiny_config(OPTIONS))
    monkeypatch.setattr(embedding, "is_dp_attention_enabled", lambda: False)
    ranks = SimpleNamespace(tp_size=3, tp_rank=0)
    monkeypatch.setattr(embedding, "get_parallel", lambda: ranks)
    with pytest.raises(ConfigError, match=r"64 columns wide .* 3 tensor-parallel ranks.*--tp-size"):
        embedding.NgramEmbedding(config)

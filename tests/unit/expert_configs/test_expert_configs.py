"""Which tile sizes SGLang's expert GEMM uses: ours, the user's, or SGLang's own."""

import json
from types import SimpleNamespace

import pytest

from sglang_longcat import expert_configs
from sglang_longcat.hooks import expert_configs as hook
from sglang_longcat.host.hf_config import LongcatConfigForSGLang
from sglang_longcat.layers import step

UP = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 256, "GROUP_SIZE_M": 1}
LITE = {"w1": (256, 2048, 3072), "w2": (256, 3072, 1024)}
NAME = "E=256,N=1024,device_name=NVIDIA_H200.json"


@pytest.fixture
def server(monkeypatch, tmp_path):
    """SGLang's choice on an H200 that serves our model; `write(name, configs)` adds a file."""
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe_triton_config as upstream

    state = SimpleNamespace(deterministic=False, ours=True)
    context = SimpleNamespace(enable_deterministic_inference=False)

    def get_exec():
        context.enable_deterministic_inference = state.deterministic
        return SimpleNamespace(deterministic=context)

    def model():
        config = LongcatConfigForSGLang.__new__(LongcatConfigForSGLang)
        config.__dict__["is_longcat_lite"] = state.ours
        return SimpleNamespace(hf_config=config)

    original = upstream.get_moe_configs
    original = getattr(original, "__wrapped__", original)
    for module in (upstream, step):
        monkeypatch.setattr(module, "get_exec", get_exec)
    monkeypatch.setattr("sglang.srt.runtime_context.process_model_config", model)
    monkeypatch.setattr(upstream, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(upstream, "get_moe_configs", lambda *a, **k: hook.apply(original, *a, **k))
    monkeypatch.setattr(expert_configs, "FOLDER", tmp_path)
    monkeypatch.delenv("SGLANG_MOE_CONFIG_DIR", raising=False)
    expert_configs.shipped.cache_clear()

    def choose(tokens, **options):
        """(first GEMM, second GEMM or None), as the engine asks for them."""
        config, (down, _) = upstream.try_get_optimal_moe_config(
            LITE["w1"], LITE["w2"], 12, None, tokens, return_down_config=True, **options
        )
        return config, down

    state.write = lambda name, configs: (tmp_path / name).write_text(json.dumps(configs))
    state.choose = choose
    yield state
    expert_configs.shipped.cache_clear()


DEFAULT = {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 32, "BLOCK_SIZE_K": 64, "GROUP_SIZE_M": 1}


def test_ours_reach_both_gemms_by_the_nearest_batch(server):
    """Red if SGLang finds get_moe_configs in another place, or if file names change."""
    server.write(NAME, {"1": UP, "64": {**UP, "BLOCK_SIZE_N": 128}})
    server.write(NAME[:-5] + "_down.json", {"1": {**UP, "BLOCK_SIZE_N": 32}})
    assert server.choose(3) == (UP, {**UP, "BLOCK_SIZE_N": 32})
    assert server.choose(60)[0]["BLOCK_SIZE_N"] == 128


def test_the_second_gemm_takes_the_first_ones_sizes_but_not_its_loads(server):
    """USE_TMA of the second GEMM also changes the order in which the first one writes."""
    server.write(NAME, {"1": {**UP, "USE_TMA": True}})
    assert server.choose(1) == ({**UP, "USE_TMA": True}, UP)


def test_without_a_file_sglang_decides(server):
    assert server.choose(1) == (DEFAULT, None)


def test_another_gpu_dtype_or_shape_has_other_files(server):
    server.write("E=256,N=1024,device_name=NVIDIA_H100_80GB_HBM3.json", {"1": UP})
    server.write(NAME.replace(".json", ",dtype=fp8_w8a8,block_shape=[128, 128].json"), {"1": UP})
    server.write(NAME.replace("1024", "512"), {"1": UP})
    assert server.choose(1) == (DEFAULT, None)
    assert server.choose(1, block_shape=[128, 128]) == (DEFAULT, None)


def test_deterministic_inference_keeps_one_size(server):
    server.write(NAME, {"1": UP})
    server.deterministic = True
    assert server.choose(1)[0]["BLOCK_SIZE_M"] == 64


def test_other_models_keep_sglangs(server):
    server.write(NAME, {"1": UP})
    server.ours = False
    assert server.choose(1) == (DEFAULT, None)


def test_the_users_folder_wins(server, tmp_path, monkeypatch):
    import triton

    server.write(NAME, {"1": UP})
    theirs = {**UP, "BLOCK_SIZE_K": 32}
    folder = tmp_path / "configs" / f"triton_{triton.__version__.replace('.', '_')}"
    folder.mkdir(parents=True)
    (folder / NAME).write_text(json.dumps({"1": theirs}))
    monkeypatch.setenv("SGLANG_MOE_CONFIG_DIR", str(tmp_path))
    assert server.choose(1)[0] == theirs


def test_files_in_the_package_have_what_sglang_reads():
    """Red for a file that was cut off, or whose two GEMMs have different rows of a tile."""
    folder = expert_configs.Path(expert_configs.__file__).parent
    needed = {*UP, "num_warps", "num_stages"}
    for path in folder.glob("*.json"):
        configs = json.loads(path.read_text())
        assert all(needed <= set(config) <= {*needed, "USE_TMA"} for config in configs.values())
        first = path.with_name(path.name.replace("_down.json", ".json"))
        rows = {k: c["BLOCK_SIZE_M"] for k, c in json.loads(first.read_text()).items()}
        assert rows == {k: c["BLOCK_SIZE_M"] for k, c in configs.items()}

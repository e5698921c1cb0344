"""What a model on a GPU holds survives that its memory is released and resumed.

SGLang saves the buffers of the target. Parameters come back with the weights that follow, or from a
copy on the host (`--enable-weights-cpu-backup`). So no other tensor may be needed afterwards.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_longcat.testing.engine_flags import nextn
from tests.harness import DEFAULTS, engine, run_python
from tests.model.drafting import predictable
from tests.model.scoring import Oracle, ask, text
from tests.model.test_modes_gpu import GPU, assert_right_tokens
from tests.model.test_speculative_gpu import NEW, STEPS, assert_accepts

# Of SGLang's attention: made again, in place, after each load. The ring has an owner only while a
# request runs. The tables' memory is the host's, or a parameter.
REMADE = {"w_kc", "w_vc", "cache.ring", "table.storage", "memory.bytes"}
LIST = """
    from sglang.srt.plugins import load_plugins
    load_plugins()
    import torch
    from sglang.benchmark import one_batch
    from sglang.srt.server_args import PortArgs, ServerArgs

    args = ServerArgs(**{arguments!r})
    one_batch.publish(args, role="scheduler", ranks=one_batch.SpawnRanks(world_rank=0, gpu_id=0))
    one_batch._init_process_global_configs()
    runner, _ = one_batch.load_model(args, PortArgs.init_new(args), 0, 0)
    model = runner.torch_runner.model
    kept = {{t.data_ptr() for t in [*model.parameters(), *model.buffers()]}}

    def show(value, name):
        if isinstance(value, torch.Tensor) and value.data_ptr() not in kept:
            print("LOOSE", name)
        if type(value).__module__.startswith(("sglang_longcat", "longcat_kernels")):
            for attribute, inner in vars(value).items():
                show(inner, f"{{name}}.{{attribute}}")

    for module in model.modules():
        for name, value in vars(module).items():
            if not isinstance(value, torch.nn.Module):
                show(value, name)
    print("BUFFERS", *(name for name, _ in model.named_buffers()))
"""


def test_every_tensor_is_saved_or_comes_back(tiny: Path) -> None:
    """Red for a constant that is neither parameter nor buffer: after a release its memory holds
    anything, and new weights do not fill it."""
    log = run_python(LIST.format(arguments={**DEFAULTS, "model_path": str(tiny)}))
    loose = {line.split()[1] for line in log.splitlines() if line.startswith("LOOSE ")}
    assert loose - REMADE == set()
    [buffers] = [line for line in log.splitlines() if line.startswith("BUFFERS ")]
    assert "model.embed_tokens.hash_moduli" in buffers
    assert "w_kc" in loose, "the walk above found nothing"


@pytest.mark.gpu
@pytest.mark.parametrize("tables", ["device", "host"])
@pytest.mark.parametrize("backup", [True, False], ids=["backup", "new-weights"])
def test_text_and_drafts_after_a_resume(
    tiny: Path, tmp_path: Path, tables: str, backup: bool
) -> None:
    """Red if constants, tables, the draft or its copy of the head hold anything else than at the
    start: without a backup the weights are loaded again, as a trainer does."""
    path = predictable(tiny, tmp_path / "predictable")
    prompts = [text(length, seed=length) for length in (1, 5, 17, 40)]
    saver = {
        "enable_memory_saver": True,
        "enable_weights_cpu_backup": backup,
        "enable_draft_weights_cpu_backup": backup,
    }
    flags = {**nextn(STEPS), **saver, "env": {"LONGCAT_NGRAM_TABLES": tables}}
    with engine(path, **GPU.flags, **flags) as llm:
        ask(llm, prompts, max_new_tokens=NEW)
        llm.call("release_memory_occupation")
        llm.call("resume_memory_occupation")
        if not backup:
            done, message, _ = llm.call("update_weights_from_disk", str(path))
            assert done, message
        answers = ask(llm, prompts, max_new_tokens=NEW)
    assert_right_tokens(answers, Oracle(path), GPU.tie)
    assert_accepts(answers, path)

"""The batched training model is the reference model; the text's split and format are stable."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sglang_longcat.checkpoint.layout import expected_tensors
from sglang_longcat.config import LongcatConfig
from sglang_longcat.reference.load import Weights
from sglang_longcat.reference.model import ReferenceModel
from sglang_longcat.reference.semantics import LONGCAT_LITE
from sglang_longcat.testing.tiny import TinyOptions, tiny_config
from training.nano.chat import conversations
from training.nano.loop import Options, Trainer, losses, train
from training.nano.model import DRAFT_STEPS, TrainedModel, _Live, initial_parameters
from training.nano.sources import Source

SIZES = TinyOptions(
    layers=2, hidden=48, heads=2, q_lora=24, kv_lora=32, nope=16, rope=8, v=12, ffn=40,
    expert_ffn=16, experts=8, zero_experts=4, topk=3, vocab=300, ratio=2, max_position=512,
)  # fmt: skip
CONFIG = LongcatConfig.from_dict(tiny_config(SIZES))
ROWS, CONTEXT = 3, 40


@pytest.fixture(scope="module")
def parameters():
    """As initialised, but with norms and router biases that matter."""
    values = initial_parameters(CONFIG, device=torch.device("cpu"), seed=1)
    with torch.no_grad():
        for value in values.values():
            if value.ndim == 1:
                value += 0.02 * torch.randn_like(value)
    return values


@pytest.fixture(scope="module")
def oracle(parameters):
    weights = Weights(_Live(parameters), torch.float32)
    return ReferenceModel(weights, CONFIG, LONGCAT_LITE, eps=CONFIG.rms_norm_eps)


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(3, 300, (ROWS, CONTEXT + DRAFT_STEPS + 1), generator=generator)
    tokens[:, [5, 6, 17]] = CONFIG.eos_token_ids[0]  # texts end inside a row
    return tokens


def test_logits_are_the_reference_s(parameters, oracle, rows):
    """Any change of attention, MoE, hash or order of operations in one of the two."""
    model = TrainedModel(parameters, CONFIG)
    text = rows[:, :CONTEXT]
    with torch.no_grad():
        ours = model.logits(model.hidden(text, model.ids(text)))
    expected = torch.stack([oracle(row) for row in text])
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.05


def test_draft_steps_are_a_draft_loop_over_the_reference_head(parameters, oracle, rows):
    """A step that sees other keys, positions, tokens or hidden states than serving gives it."""
    model = TrainedModel(parameters, CONFIG)
    text = rows[:, :CONTEXT]
    with torch.no_grad():
        ours = model.draft_logits(rows[:, :-1], model.hidden(text, model.ids(text)))
    torch.testing.assert_close(
        ours[0][0], oracle.mtp_logits(rows[0, : CONTEXT + 1]), atol=1e-4, rtol=1e-4
    )
    for row in (0, 7, CONTEXT - 1):
        drafted = _draft_loop(oracle, rows[1], row)
        for step in range(DRAFT_STEPS):
            torch.testing.assert_close(ours[step][1, row], drafted[step], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def _draft_loop(oracle, tokens, row):
    """Committed text up to `row`, then draft: the head's own state behind the target's."""
    embeddings = list(oracle.mtp.word[tokens[1 : row + 2]])
    states = list(oracle.hidden(tokens[: row + 1]))
    logits = []
    for step in range(DRAFT_STEPS):
        state = oracle.mtp.hidden(torch.stack(embeddings), torch.stack(states))[-1]
        logits.append(F.linear(state, oracle.lm_head))
        embeddings.append(oracle.mtp.word[tokens[row + step + 2]])
        states.append(state)
    return logits


def test_every_parameter_learns_and_drafts_leave_the_trunk_alone(parameters, rows):
    """A tensor cut off from the loss would ship untrained; MTP must not cost the main model."""
    model = TrainedModel(parameters, CONFIG)
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    values, _, imbalance = losses(model, rows, model.ids(rows[:, :CONTEXT]))
    (values.sum() + imbalance).backward()
    idle = [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert idle == []
    for p in trained.values():
        p.grad = None
    losses(model, rows, model.ids(rows[:, :CONTEXT]))[0][1:].sum().backward()
    touched = {name for name, p in trained.items() if p.grad is not None and p.grad.any()}
    assert touched == {name for name in trained if name.startswith("model.mtp.")}


def test_a_run_learns_and_leaves_its_files(tmp_path):
    """`train` without tokenizers or safetensors: data folder in; weights, curve and account out."""
    data = _data_folder(tmp_path / "data")
    options = Options(
        data=data, out=tmp_path / "run", minutes=1, batch=8, context=24, lr=3e-3, seed=0,
        max_steps=30, ngram=True, compile=False, weights=True,
    )  # fmt: skip
    train(options)
    parts = [torch.load(tmp_path / "run" / f"weights-{number}.pt") for number in range(2)]
    shapes = {name: tuple(weight.shape) for part in parts for name, weight in part.items()}
    assert shapes == expected_tensors(CONFIG, mtp=True)
    lines = (tmp_path / "run" / "loss.csv").read_text().splitlines()
    first, last = (float(line.split(",")[5]) for line in (lines[1], lines[-1]))
    assert last < first - 0.5


def test_the_best_weights_are_kept(tmp_path):
    """A run that begins to learn by heart must ship what it was before that."""
    data = _data_folder(tmp_path / "data")
    options = Options(
        data=data, out=tmp_path / "run", minutes=1, batch=2, context=24, lr=3e-3, seed=0,
        max_steps=1, ngram=True, compile=False, weights=False,
    )  # fmt: skip
    trainer = Trainer(options)
    trainer._keep_best(0.0)
    kept = trainer.best["weights"]["lm_head.weight"].clone()
    for value in trainer.parameters.values():
        value.data.mul_(3)
    trainer._finish(1.0)
    assert torch.equal(trainer.parameters["lm_head.weight"], kept.float())
    account = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert account["held_out"]["loss"]["main"] < 6.5


def _data_folder(path):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(tiny_config(SIZES)))
    tokens = np.tile(np.arange(3, 60, dtype=np.uint16), 40)
    starts = np.arange(0, len(tokens), 57)
    np.savez(
        path / "tokens.npz",
        train=tokens, train_starts=starts, held_out=tokens, held_out_starts=starts,
    )  # fmt: skip
    (path / "data.json").write_text(json.dumps({"train": {"tokens": len(tokens)}}))
    return path


def test_the_split_is_by_path_alone():
    """Another machine, text or order must not move a file between training and held-out."""
    held = [n for n in range(400) if Source("cpython", f"cpython/m{n}.py", "x").held_out]
    assert held[:3] == [20, 28, 89]
    assert 4 < len(held) < 20


def test_a_documented_function_becomes_a_conversation():
    text = 'def double(x):\n    """Return twice the number x.\n\n    More."""\n    return 2 * x\n'
    [turns] = conversations(text)
    question, answer = turns[0]
    assert "double" in question or "twice" in question
    assert answer.startswith("```python\ndef double(x):")
    assert "return 2 * x" in answer
    assert "More." not in answer

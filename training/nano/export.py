"""Writes a run as a checkpoint in the published layout: `python -m training.nano export`.

Owns: the shipped files: config, generation config, tokenizer, safetensors in bf16 with an index,
model card, loss curve (CSV and PNG), origin of the data. checkpoint.layout has the names of the
tensors, and checkpoint.check checks the result. matplotlib is optional: without it there is no PNG.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sglang_longcat.checkpoint.check import check_checkpoint
from sglang_longcat.checkpoint.generation import generation_config
from sglang_longcat.checkpoint.headers import INDEX_NAME
from sglang_longcat.checkpoint.layout import expected_tensors, tensor_dtype
from sglang_longcat.config import LongcatConfig
from sglang_longcat.testing.tokenizer import BOS_ID, EOS_ID, PAD_ID
from training.nano.samples import write_golden, write_held_out

_COPIED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "data.json",
)
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_FILE = "model.safetensors"


def export(*, run: Path, data: Path, out: Path, ablation: Path | None = None) -> None:
    """Write the checkpoint folder `out` from the folders that `train` and `prepare` wrote.

    ablation: the folder of a run without N-gram tables, with which the model card compares.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        shutil.copyfile(data / name, out / name)
    for name in ("loss.csv", "metrics.json"):
        shutil.copyfile(run / name, out / name)
    defaults = generation_config(bos=BOS_ID, eos=EOS_ID, pad=PAD_ID)
    _write_json(out / "generation_config.json", defaults)
    config = LongcatConfig.from_dir(out)
    weights: dict[str, torch.Tensor] = {}
    for part in run.glob("weights-*.pt"):
        weights |= torch.load(part)
    _write_weights(weights, config, out=out)
    check_checkpoint(out, config)
    _plot(out / "loss.csv", out / "loss.png")
    if ablation is not None:
        shutil.copyfile(ablation / "metrics.json", out / "ablation.json")
    write_held_out(data, out / "held_out.json", eos=EOS_ID)
    write_golden(out)
    (out / "README.md").write_text(_card(out))
    print(out)


def _write_weights(weights: dict[str, torch.Tensor], config: LongcatConfig, *, out: Path) -> None:
    names = expected_tensors(config, mtp=True)
    tensors = {name: weights[name].to(_DTYPES[tensor_dtype(name)]).contiguous() for name in names}
    save_file(tensors, out / _FILE, metadata={"format": "pt"})
    (out / _FILE).chmod(0o644)  # save_file writes 0600, which a wheel would install for root alone
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(sorted(names), _FILE)}
    _write_json(out / INDEX_NAME, index)


def _plot(curve: Path, image: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: no loss.png")
        return
    with curve.open() as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(("main", "mtp1", "mtp2", "mtp3")):
        for split, style in (("train", "-"), ("held_out", "o")):
            points = [row for row in rows if row["split"] == split]
            x = [float(row["tokens"]) / 1e6 for row in points]
            y = [float(row[name]) for row in points]
            axes.plot(x, y, style, color=f"C{number}", ms=3, label=f"{name}, {split}")
    axes.set(xlabel="million tokens", ylabel="nats per token", title="LongCat-nano")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize=8)
    figure.savefig(image, dpi=110)


def _card(out: Path) -> str:
    metrics = json.loads((out / "metrics.json").read_text())
    data = json.loads((out / "data.json").read_text())
    flags = " ".join(f"--{k.replace('_', '-')} {v}" for k, v in _flags(metrics["options"]))
    return _CARD.format(
        **metrics,
        flags=flags,
        millions=metrics["parameters"] / 1e6,
        size=(out / _FILE).stat().st_size / 1e6,
        train=data["train"]["tokens"] / 1e6,
        held=data["held_out"]["tokens"] / 1e3,
        sources=_table(data["sources"], ("package", "version", "licence", "files", "bytes")),
        losses=_losses(metrics["held_out"]),
        ablation=_ablation(out / "ablation.json"),
        windows=len(json.loads((out / "held_out.json").read_text())["windows"]),
        experts=_experts(metrics["held_out"]["expert_share_per_layer"]),
    )


def _ablation(file: Path) -> str:
    if not file.exists():
        return "The same run without N-gram tables was not made."
    run = json.loads(file.read_text())
    return f"The same without N-gram tables ({run['steps']} steps):\n\n{_losses(run['held_out'])}"


def _flags(options: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(k, v) for k, v in options.items() if not isinstance(v, bool)]


def _losses(held_out: dict[str, Any]) -> str:
    rows = [
        {"head": name, "loss (nats)": value, "top-1": held_out["top1"][name]}
        for name, value in held_out["loss"].items()
    ]
    return _table(rows, ("head", "loss (nats)", "top-1"))


def _experts(shares: list[list[float]]) -> str:
    lines = [
        f"- layer {i}: {' '.join(f'{s:.1%}' for s in share)}" for i, share in enumerate(shares)
    ]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    lines = [columns, ("---",) * len(columns), *(tuple(row[c] for c in columns) for row in rows)]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")


_CARD = """# LongCat-nano

A {millions:.1f} M parameter model with LongCat-Flash-Lite's architecture, trained from scratch for
demos and tests of this package: every mechanism is there (MLA, shortcut-connected MoE with identity
experts, n = 4 / k = 4 n-gram tables, YaRN, one MTP layer with its own embedding), the knowledge is
that of {train:.0f} M tokens of Python source. It is not a product of the LongCat team.

Weights: {size:.1f} MB, bf16 (router fp32). Licence of the weights: MIT, like this package.

## Data

Python files that ship with CPython and these packages, read from an installed environment, and
conversations made from their docstrings. Held out by file (hash of its path): {held:.0f} K tokens;
`data.json` lists the files.

{sources}

## Training

    python -m training.nano prepare --out DATA
    python -m training.nano train --data DATA --out RUN {flags}
    python -m training.nano export --data DATA --run RUN --out sglang_longcat/assets/nano

{device}, torch {torch}, Python {python}: {steps} steps in {seconds:.0f} s, {tokens} tokens
({epochs} epochs). AdamW, cosine schedule by elapsed time, bf16 autocast over fp32 weights, seeded
(sums in another order make runs differ in the last digits). The MTP layer is trained for three
draft steps on its own states, as it is served, and sends no gradient into the main model.

Held out at the end:

{losses}

{ablation}

Share of the chosen expert slots, experts 0 to 7 then the four identity experts:

{experts}

Curves: `loss.csv`, `loss.png`. The weights are those of step {best_step}, of the lowest loss on a
part of the held-out text.

## Use

    make serve

For `ci/accuracy`: `held_out.json`, {windows} windows of held-out tokens (excerpts of the files
above, under their packages' licences), and `golden.json`, greedy answers of the fp32 reference
model.
"""

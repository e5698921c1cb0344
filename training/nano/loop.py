"""The training loop: `python -m training.nano train`; torch and numpy only.

Owns: batches, losses, optimiser, schedule by elapsed time, evaluation, progress, and the files of a
run: weights-0.pt and weights-1.pt of the best held-out loss, loss.csv, metrics.json. model.py has
the model's mathematics.
"""

from __future__ import annotations

import csv
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_longcat.checkpoint.layout import MTP_PREFIX, tensor_dtype
from sglang_longcat.config import LongcatConfig
from training.nano.data import load
from training.nano.model import DRAFT_STEPS, Parameters, TrainedModel, initial_parameters

_BALANCE_LOSS = 0.01  # weight of the routers' imbalance
_BIAS_RATE = 1e-3  # per step, at the peak of the schedule
_WARMUP = 0.03  # share of the time
_FLOOR = 0.02  # of the peak learning rate, at the end
# Times the learning rate, for rows of tables: they are divided by 1 + tables, and rarely seen.
_TABLE_LR = 12.0
_FROM_START = 0.25  # share of rows that begin at the start of a document
# The text is seen seven times. Without the next two, held-out loss rose from the fifth time on.
_ROW_DROPOUT = 0.15  # share of N-gram rows that a step drops
_ROW_DECAY = 0.05  # five times that of words, so that rows of rare N-grams memorise less
_REPORT_S, _EVALUATE_S = 10.0, 15.0
_COLUMNS = ("seconds", "step", "tokens", "lr", "main", *(f"mtp{i + 1}" for i in range(DRAFT_STEPS)))
_PARTS, _PART_BYTES = 2, 16 * 2**20  # weight files, because a GPU host may limit number and size
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
_LOSSES = ("main", *(f"mtp{i + 1}" for i in range(DRAFT_STEPS)))


@dataclass(frozen=True)
class Options:
    """The flags of `train`."""

    data: Path
    out: Path
    minutes: float
    batch: int
    context: int
    lr: float
    seed: int
    max_steps: int | None
    ngram: bool
    compile: bool
    weights: bool


class Text:
    """Token rows of `context` + DRAFT_STEPS + 1 from one long array on the device."""

    def __init__(self, tokens: Any, starts: Any, *, context: int, device: torch.device) -> None:
        self.tokens = torch.from_numpy(tokens.astype(np.int32)).to(device)
        self.width = context + DRAFT_STEPS + 1
        usable = starts[starts < len(tokens) - self.width]
        self.starts = torch.from_numpy(usable).to(device)

    def random(self, batch: int, generator: torch.Generator) -> Tensor:
        """[batch, width] int64; some rows begin at the start of a document."""
        at_start, device = int(batch * _FROM_START), self.tokens.device
        pick = torch.randint(len(self.starts), (at_start,), generator=generator, device=device)
        high, rest = len(self.tokens) - self.width, batch - at_start
        anywhere = torch.randint(high, (rest,), generator=generator, device=device)
        return self._rows(torch.cat((self.starts[pick], anywhere)))

    def spread(self, rows: int) -> Tensor:
        """`rows` rows at equal distances, which are the same in each call."""
        at = torch.linspace(0, len(self.tokens) - self.width - 1, rows, device=self.tokens.device)
        return self._rows(at.long())

    def _rows(self, at: Tensor) -> Tensor:
        return self.tokens[at[:, None] + torch.arange(self.width, device=at.device)].long()


def losses(
    model: TrainedModel, rows: Tensor, ids: Tensor | None, keep: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """rows [B, T + DRAFT_STEPS + 1], ids of its first T columns -> (losses, hits, imbalance).

    keep [B, T, tables]: the factor of each N-gram row (dropout); None: 1.

    losses [1 + steps]: mean cross entropy of the main model and of each draft step. hits [1 +
    steps]: the share of tokens that were the most likely token. imbalance: mean over the routers.
    """
    context = rows.shape[1] - DRAFT_STEPS - 1
    with torch.autocast(rows.device.type, dtype=torch.bfloat16, enabled=rows.is_cuda):
        hidden = model.hidden(rows[:, :context], ids, keep)
        all_logits = [model.logits(hidden), *model.draft_logits(rows[:, :-1], hidden)]
    values, hits = [], []
    for step, logits in enumerate(all_logits):
        target = rows[:, step + 1 : step + 1 + context].flatten()
        flat = logits.flatten(0, 1).float()
        values.append(F.cross_entropy(flat, target))
        hits.append((flat.detach().argmax(dim=-1) == target).float().mean())
    imbalance = torch.stack([moe.imbalance for moe in model.moes]).mean()
    return torch.stack(values), torch.stack(hits), imbalance


class Trainer:
    """One run, from fresh parameters to files."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        self.config = LongcatConfig.from_dir(options.data)
        self.parameters = initial_parameters(self.config, device=self.device, seed=options.seed)
        self.model = TrainedModel(self.parameters, self.config, ngram=options.ngram)
        self.optimizer = _optimizer(self.parameters, lr=options.lr)
        self.losses: Callable[..., tuple[Tensor, Tensor, Tensor]] = losses
        arrays, self.account = load(options.data)
        self.train_text, self.held_out = (
            Text(
                arrays[part],
                arrays[f"{part}_starts"],
                context=options.context,
                device=self.device,
            )
            for part in ("train", "held_out")
        )
        self.generator = torch.Generator(self.device).manual_seed(options.seed)
        self.step, self.rows_csv = 0, list[dict[str, Any]]()
        self.best: dict[str, Any] = {"loss": math.inf}

    def run(self) -> None:
        self._compile()
        started = reported = evaluated = time.perf_counter()
        while not self._done(time.perf_counter() - started):
            seconds = time.perf_counter() - started
            now = self._train_step(progress=self._progress(seconds))
            if seconds - (reported - started) >= _REPORT_S or self.step == 1:
                reported = time.perf_counter()
                self._report(reported - started, now)
            if seconds - (evaluated - started) >= _EVALUATE_S:
                evaluated = time.perf_counter()
                self._keep_best(evaluated - started)
        self._finish(time.perf_counter() - started)

    def _done(self, seconds: float) -> bool:
        limit = self.options.max_steps
        return seconds >= self.options.minutes * 60 or (limit is not None and self.step >= limit)

    def _progress(self, seconds: float) -> float:
        return min(seconds / (self.options.minutes * 60), 1.0)

    def _compile(self) -> None:
        """Compile with one step whose result is discarded. If that fails, run without compiling."""
        if not self.options.compile:
            return
        begun = time.perf_counter()
        self.losses = torch.compile(losses, dynamic=False)
        rows = self.train_text.random(self.options.batch, self._fresh_generator())
        try:
            self._backward(rows)
        except Exception as error:  # noqa: BLE001 - whatever the compiler raises: slower is enough
            print(f"torch.compile failed, running without it: {error!r:.500}", flush=True)
            self.losses = losses
        self.optimizer.zero_grad(set_to_none=True)
        print(f"compiled in {time.perf_counter() - begun:.0f} s", flush=True)

    def _fresh_generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.options.seed + 1)

    def _backward(self, rows: Tensor) -> Tensor:
        ids = self.model.ids(rows[:, : self.options.context])
        values, _, imbalance = self.losses(self.model, rows, ids, self._dropout(ids))
        (values.sum() + _BALANCE_LOSS * imbalance).backward()
        return values.detach()

    def _dropout(self, ids: Tensor | None) -> Tensor | None:
        if ids is None:
            return None
        uniform = torch.rand(ids.shape, generator=self.generator, device=ids.device)
        return (uniform >= _ROW_DROPOUT).float() / (1 - _ROW_DROPOUT)

    def _train_step(self, *, progress: float) -> Tensor:
        factor = _schedule(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        values = self._backward(self.train_text.random(self.options.batch, self.generator))
        for draft in (False, True):  # clipped separately: no gradient passes between the two
            trained = [
                value
                for name, value in self.parameters.items()
                if value.grad is not None and name.startswith(MTP_PREFIX) == draft
            ]
            torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for layer, moe in enumerate(self.model.moes):  # move the biases towards an even load
            bias = self.parameters[f"model.layers.{layer}.mlp.router.e_score_correction_bias"]
            bias += _BIAS_RATE * factor * (1 / len(moe.load) - moe.load).sign()
        self.step += 1
        return values

    def _report(self, seconds: float, values: Tensor) -> None:
        tokens = self.step * self.options.batch * self.options.context
        numbers = _rounded(values)
        lr = self.options.lr * _schedule(self._progress(seconds))
        row = dict(zip(_COLUMNS, (round(seconds, 1), self.step, tokens, lr, *numbers)))
        self.rows_csv.append({"split": "train"} | row)
        rate, limit = tokens / seconds, self.options.minutes * 60
        shown = "  ".join(f"{name} {row[name]:.3f}" for name in _LOSSES)
        print(
            f"{seconds:5.0f}/{limit:.0f} s  step {self.step}  {rate / 1e3:.0f}K tok/s  {shown}",
            flush=True,
        )

    @torch.no_grad()
    def _evaluate(self, seconds: float, *, batches: int = 2) -> dict[str, Any]:
        rows, size = self.held_out.spread(batches * self.options.batch), self.options.batch
        parts, hits, loads = [], [], []
        for part in rows.split(size):
            values, hit, _ = losses(self.model, part, self.model.ids(part[:, : -DRAFT_STEPS - 1]))
            parts.append(values)
            hits.append(hit)
            loads.append(torch.stack([moe.load for moe in self.model.moes]))
        numbers = _rounded(torch.stack(parts).mean(dim=0))
        tokens = self.step * size * self.options.context
        row = dict(zip(_COLUMNS, (round(seconds, 1), self.step, tokens, 0.0, *numbers)))
        self.rows_csv.append({"split": "held_out"} | row)
        right = _rounded(torch.stack(hits).mean(dim=0))
        shown = "  ".join(f"{name} {row[name]:.3f}" for name in _LOSSES)
        print(f"           held out: {shown}  top-1 {right}", flush=True)
        return {
            "tokens": rows.shape[0] * self.options.context,
            "loss": dict(zip(_LOSSES, numbers)),
            "top1": dict(zip(_LOSSES, right)),
            "expert_share_per_layer": _rounded(torch.stack(loads).mean(dim=0)),
        }

    @torch.no_grad()
    def _keep_best(self, seconds: float) -> None:
        """Evaluate and save, so that a run that is cut off leaves its best weights and the
        curve."""
        loss = self._evaluate(seconds)["loss"]["main"]
        if loss < self.best["loss"]:
            weights = {
                name: value.detach().to("cpu", _DTYPES[tensor_dtype(name)], copy=True)
                for name, value in self.parameters.items()
            }
            if not self.options.ngram:
                for name in weights:
                    if ".embedders." in name:
                        weights[name].zero_()
            self.best = {"loss": loss, "step": self.step, "weights": weights}
        self._save()

    @torch.no_grad()
    def _finish(self, seconds: float) -> None:
        self._keep_best(seconds)
        for name, value in self.parameters.items():  # evaluate the weights that ship
            value.copy_(self.best["weights"][name])
        final = self._evaluate(seconds, batches=8)
        self._save()
        metrics = json.dumps(self._metrics(seconds, final), indent=2)
        (self.options.out / "metrics.json").write_text(metrics + "\n")
        print(f"wrote {self.options.out}: the weights of step {self.best['step']}", flush=True)

    def _save(self) -> None:
        """weights-N.pt in the published dtypes, and loss.csv."""
        out = self.options.out
        out.mkdir(parents=True, exist_ok=True)
        if self.options.weights:
            for number, part in enumerate(_parts(self.best["weights"])):
                torch.save(part, out / f"weights-{number}.pt")
        with (out / "loss.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=("split", *_COLUMNS))
            writer.writeheader()
            writer.writerows(self.rows_csv)

    def _metrics(self, seconds: float, final: dict[str, Any]) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        options = asdict(self.options) | {"data": None, "out": None}
        tokens = self.step * self.options.batch * self.options.context
        return {
            "options": {key: value for key, value in options.items() if value is not None},
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or "CPU",
            "peak_gb": round(torch.cuda.max_memory_allocated() / 2**30, 1) if cuda else None,
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "parameters": sum(p.numel() for p in self.parameters.values()),
            "steps": self.step,
            "best_step": self.best["step"],
            "seconds": round(seconds, 1),
            "tokens": tokens,
            "epochs": round(tokens / self.account["train"]["tokens"], 2),
            "held_out": final,
        }


def train(options: Options) -> None:
    Trainer(options).run()


def _parts(weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """_PARTS parts of about the same size: from the largest tensor on, each goes to the smallest
    part."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(_PARTS)]
    sizes = [0] * _PARTS
    for name, value in sorted(weights.items(), key=lambda item: -item[1].nbytes):
        lightest = sizes.index(min(sizes))
        parts[lightest][name] = value
        sizes[lightest] += value.nbytes
    if max(sizes) > 0.97 * _PART_BYTES:  # the file has headers of its own
        raise ValueError(f"parts of {sizes} bytes, at most {_PART_BYTES}: make the model smaller")
    return parts


def _rounded(values: Tensor) -> Any:
    """Nested lists with four digits, short enough to read."""
    return np.round(values.double().cpu().numpy(), 4).tolist()


def _schedule(progress: float) -> float:
    """Linear warm-up, then a cosine down to _FLOOR."""
    if progress < _WARMUP:
        return (progress + 1e-3) / (_WARMUP + 1e-3)
    turned = (progress - _WARMUP) / (1 - _WARMUP) * math.pi
    return _FLOOR + (1 - _FLOOR) * (1 + math.cos(turned)) / 2


def _optimizer(parameters: Parameters, *, lr: float) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices, none for norms, and a higher rate for table rows."""
    groups: dict[str, dict[str, Any]] = {
        "matrix": {"params": [], "peak": lr, "weight_decay": 0.1},
        "word": {"params": [], "peak": lr * _TABLE_LR, "weight_decay": 0.01},
        "rows": {"params": [], "peak": lr * _TABLE_LR, "weight_decay": _ROW_DECAY},
        "vector": {"params": [], "peak": lr, "weight_decay": 0.0},
    }
    for name, parameter in parameters.items():
        if parameter.requires_grad:
            groups[_kind(name, parameter)]["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=lr, betas=(0.9, 0.95), fused=True)


def _kind(name: str, parameter: Tensor) -> str:
    if ".embedders." in name:
        return "rows"
    if "embed_tokens." in name:
        return "word"
    return "matrix" if parameter.ndim > 1 else "vector"

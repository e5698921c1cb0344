"""Trains LongCat-nano, the small checkpoint that ships with the package.

    python -m training.nano prepare --out DATA              CPU: tokenizer, tokens, origin
    python -m training.nano train --data DATA --out RUN     GPU (or CPU); torch and numpy only
    python -m training.nano train --data DATA --out ABLATION --no-ngram --no-weights
    python -m training.nano export --run RUN --data DATA --ablation ABLATION \
        --out sglang_longcat/assets/nano

On an H100 each training takes 2.5 minutes after one minute of compiling, so both take at most nine.
They write six files: RUN/{weights-0.pt,weights-1.pt,loss.csv,metrics.json} and
ABLATION/{loss.csv,metrics.json}. The weights are those of the lowest held-out loss; they are saved
whenever an evaluation finds a lower one.

Owns: the command line. sources.py, chat.py and data.py make the text, model.py is the model as it
is trained, loop.py trains it, export.py writes the checkpoint, and samples.py what the gates ask
it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    # Imported per command, because the GPU host has neither tokenizers nor safetensors.
    if args.command == "prepare":
        from training.nano.data import prepare

        prepare(args.out)
    elif args.command == "train":
        from training.nano.loop import Options, train

        values = vars(args) | {"command": None}
        train(Options(**{key: value for key, value in values.items() if key != "command"}))
    else:
        from training.nano.export import export

        export(run=args.run, data=args.data, out=args.out, ablation=args.ablation)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.nano")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="write the data folder")
    prepare.add_argument("--out", type=Path, required=True)
    train = commands.add_parser("train", help="train for a number of minutes")
    train.add_argument("--data", type=Path, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--minutes", type=float, default=2.5, help="of training, after compiling")
    train.add_argument("--batch", type=int, default=64, help="rows per step")
    train.add_argument("--context", type=int, default=512, help="tokens per row")
    train.add_argument("--lr", type=float, default=2e-3)
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--max-steps", type=int, default=None, help="stop early (tests)")
    train.add_argument("--ngram", action=argparse.BooleanOptionalAction, default=True)
    train.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    train.add_argument("--weights", action=argparse.BooleanOptionalAction, default=True)
    export = commands.add_parser("export", help="write the checkpoint of a run")
    export.add_argument("--run", type=Path, required=True)
    export.add_argument("--data", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--ablation", type=Path, help="a run with --no-ngram, for the model card")
    return parser


if __name__ == "__main__":
    sys.exit(main())

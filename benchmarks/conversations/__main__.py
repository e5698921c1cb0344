"""Long conversations through a recipe's real HTTP server: what a turn costs, and what it reuses.

    python -m benchmarks.conversations h200-tp1-fp8-latency --context-length 65536 --out turns.json
    python -m benchmarks.conversations h200-tp1-fp8-throughput --users 16 \\
        --arms ours,ours+hicache,in-tree --hicache-size 200 --out turns.json

For each arm it starts the recipe's server in full size with dummy weights and spread routing, plays
all conversations turn by turn, and ends the server. Every turn sends the whole conversation as
token ids. Between two turns nothing is sent until all conversations have been answered.

ours, no-drafts, in-tree   as in `python -m benchmarks.serving`
ARM+hicache                with --enable-hierarchical-cache: what leaves the GPU's cache stays in
                           host memory. GPU only. Its sizes are SGLang's --hicache-* flags.
ARM+no-cache               with --disable-radix-cache: every turn is computed as a whole

By default 32 conversations grow to 39,936 tokens in 20 turns. Options that are not below go to
every arm's server. The server's log is FILE's folder logs/ARM.log. Each turn is printed and written
to FILE when it is done; arms that FILE has already are kept. With matplotlib, FILE with the ending
.svg shows time to the first token and cached share by turn.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

from benchmarks.conversations import figure, turns
from benchmarks.conversations.play import Sizes, play
from benchmarks.serving import arms, options
from benchmarks.serving.report import Report
from benchmarks.serving.started import started
from launch import serve

EXTRA = {
    "": (),
    "+hicache": ("--enable-hierarchical-cache",),
    "+no-cache": ("--disable-radix-cache",),
}
ARMS = {
    name + kind: (arm, flags) for name, arm in arms.ARMS.items() for kind, flags in EXTRA.items()
}
WARM_UP_SEED = 1_000_000  # no conversation of the measurement has its words


def main() -> None:
    args, sizes = parse()
    report = Report(
        args.out,
        recipe=args.recipe.stem,
        command=shlex.join(["python", "-m", "benchmarks.conversations", *sys.argv[1:]]),
        sizes=sizes.as_dict(),
        columns=turns.COLUMNS,
    )
    failed = options.each(args.arms, lambda arm: measure(arm, args, sizes, report))
    print(report.table())
    print(figure.write(report.whole, args.out.with_suffix(".svg")))
    options.finish(failed)


def parse() -> tuple[argparse.Namespace, Sizes]:
    parser = options.new_parser("python -m benchmarks.conversations", __doc__, timeout=480)
    parser.add_argument("--conversations", type=int, default=32)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--users", type=int, default=8, help="conversations answered at once")
    parser.add_argument("--first", type=int, default=10240, help="tokens of a first prompt")
    parser.add_argument("--user", type=int, default=1024, help="tokens that a later turn adds")
    parser.add_argument("--answer", type=int, default=512, help="tokens of an answer")
    args = options.parse(parser, ARMS)
    sizes = Sizes(**{name: getattr(args, name) for name in Sizes.__dataclass_fields__})
    if wrong := [name for name, value in sizes.as_dict().items() if value < 1]:
        parser.error(f"--{wrong[0]}: expected at least 1")
    context = context_length(args)
    if context and sizes.longest > context:
        parser.error(
            f"a conversation grows to {sizes.longest:,} tokens, and the server has a context of "
            f"{context:,}: raise --context-length, or lower --turns, --first, --user or --answer"
        )
    return args, sizes


def context_length(args: argparse.Namespace) -> int | None:
    """Of the recipe, unless a flag for every arm's server says otherwise. None: the model's own."""
    if "--context-length" in args.server_flags:
        return int(args.server_flags[args.server_flags.index("--context-length") + 1])
    return args.flags.get("context-length")


def measure(name: str, args: argparse.Namespace, sizes: Sizes, report: Report) -> None:
    arm, flags = ARMS[name]
    url = f"http://{serve.HOST}:{args.port}"
    with started(name, arm, args, flags) as running:
        report.begin(name, running.about)
        model = read_model(running.model)
        warm_up(url, sizes, **model)
        for row in play(url, sizes, **model):
            report.add(row)


def read_model(directory: Path) -> dict[str, int]:
    config = json.loads((directory / "config.json").read_text())
    eos = config["eos_token_id"]
    return {"words": config["vocab_size"], "eos": eos[0] if isinstance(eos, list) else eos}


def warm_up(url: str, sizes: Sizes, *, words: int, eos: int) -> None:
    """Two turns of `users` other conversations, so that kernels are compiled; nothing of them stays
    in the cache."""
    few = replace(sizes, conversations=sizes.users, turns=min(2, sizes.turns))
    for _ in play(url, few, words=words, eos=eos, seed=WARM_UP_SEED):
        pass
    with urllib.request.urlopen(f"{url}/flush_cache?timeout=30", data=b"", timeout=60):
        pass


if __name__ == "__main__":
    main()

"""How many tokens a speculative step yields on LongCat-nano, and that they are the same tokens.

    python ci/acceptance.py --prompts 24 --tokens 64        on the CPU, fp32, greedy, 3 steps

Prompts are the beginnings of nano's held-out windows. Prints one JSON line per draft embedding:
acceptance length (tokens a step, at most steps + 1), the share of steps that accepted at least i
drafts, and how many outputs equal those without speculation. Exits 1 if one does not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from harness import engine  # noqa: E402
from sglang_longcat.assets import nano  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args(arguments)
    windows = json.loads((nano() / "held_out.json").read_text())["windows"]
    lengths = (32, 64, 96, 128, 160, 192, 224, 256)
    prompts = [
        windows[i % len(windows)][: lengths[i // len(windows) % len(lengths)]]
        for i in range(args.prompts)
    ]
    flags = {
        "speculative_algorithm": "NEXTN",
        "speculative_num_steps": args.steps,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": args.steps + 1,
    }
    plain = ask(prompts, args.tokens)
    wanted = [one["output_ids"] for one in plain]
    same = True
    for embedding in ("mtp", "word"):
        found = ask(prompts, args.tokens, env={"LONGCAT_DRAFT_EMBEDDING": embedding}, **flags)
        equal = sum(one["output_ids"] == want for one, want in zip(found, wanted, strict=True))
        print(json.dumps({"embedding": embedding, "equal": equal, **acceptance(found)}), flush=True)
        same = same and equal == len(prompts)
    return 0 if same else 1


def ask(prompts: list[list[int]], tokens: int, **flags: Any) -> list[dict[str, Any]]:
    with engine(nano(), timeout=600, max_total_tokens=16384, **flags) as llm:
        results: list[dict[str, Any]] = llm.generate(
            input_ids=prompts,
            sampling_params={"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True},
            timeout=3600,
        )
    return results


def acceptance(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Over all verifications of all requests."""
    counts = [0] * 16
    for one in results:
        for accepted, steps in enumerate(one["meta_info"]["spec_correct_drafts_histogram"]):
            counts[accepted] += steps
    steps = sum(counts)
    least = [sum(counts[i:]) / steps for i in range(1, 16) if sum(counts[i:])]
    return {
        "prompts": len(results),
        "steps": steps,
        "acceptance_length": round(1 + sum(i * n for i, n in enumerate(counts)) / steps, 3),
        "at_least": [round(share, 3) for share in least],
    }


if __name__ == "__main__":
    sys.exit(main())

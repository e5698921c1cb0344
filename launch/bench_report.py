"""Turns results.jsonl of `launch/bench.sh` into a table (report.md) and a figure (report.svg).

Owns: which columns there are, and their printing. The measurement is SGLang's own benchmark.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLUMNS = {
    "concurrent": ("max_concurrency", "{:,}"),
    "output tok/s": ("output_throughput", "{:,.0f}"),
    "TPOT median ms": ("median_tpot_ms", "{:.2f}"),
    "TPOT p99 ms": ("p99_tpot_ms", "{:.2f}"),
    "TTFT median ms": ("median_ttft_ms", "{:,.0f}"),
    "tokens a step": ("accept_length", "{:.2f}"),
    "requests": ("completed", "{:,}"),
}
_SERVER = ("model_path", "version", "tp_size", "ep_size", "attention_backend")

Run = dict[str, Any]


def main() -> None:
    source = Path(sys.argv[1])
    runs = [json.loads(line) for line in source.read_text().splitlines()]
    if not runs:
        sys.exit(f"{source} is empty: every run of the benchmark failed; its errors are above.")
    report = source.with_name("report.md")
    report.write_text(_report(runs))
    print(report.read_text())
    print(_plot(runs, source.with_name("report.svg")))


def _report(runs: list[Run]) -> str:
    first, server = runs[0], runs[0].get("server_info") or {}
    about = ", ".join(f"{key} {server[key]}" for key in _SERVER if server.get(key) is not None)
    lines = [
        f"# {first['random_input_len']:,} tokens in, {first['random_output_len']:,} out",
        "",
        f"{about or 'server not described'}. Random token ids, no shared prefixes.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    return "\n".join([*lines, *map(_row, runs), ""])


def _row(run: Run) -> str:
    values = ((run.get(key), form) for key, form in COLUMNS.values())
    cells = ("" if value is None else form.format(value) for value, form in values)
    return "| " + " | ".join(cells) + " |"


def _plot(runs: list[Run], target: Path) -> str:
    """Throughput over speed of a request, one point per concurrency. Returns the line to print."""
    try:
        import matplotlib
    except ImportError:
        return "no figure: matplotlib is not installed (pip install matplotlib, then run again)"
    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    speed = [1000 / run["median_tpot_ms"] for run in runs]
    axes.plot(speed, [run["output_throughput"] for run in runs], marker="o")
    for run, x in zip(runs, speed):
        axes.annotate(f"{run['max_concurrency']}", (x, run["output_throughput"]))
    axes.set(xlabel="tokens/s of one request (median)", ylabel="tokens/s of all")
    axes.grid(visible=True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(target)
    return f"figure: {target}"


if __name__ == "__main__":
    main()

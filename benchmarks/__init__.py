"""Measurements on real hardware, started by hand: `python -m benchmarks.engine` and the others.

`engine` compares whole engines and `scaling` numbers of GPUs; `profile_step` and `profile_phases`
show where the time of a step goes; `allreduce` and `load_time` time one part; `projection` computes
steps on several GPUs from these; `plots` draws the figures of docs/. `kernels/` times single
operations, and `tune/` searches tile sizes. Owns: the folder of results. CI runs none of these.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"  # a folder per GPU model

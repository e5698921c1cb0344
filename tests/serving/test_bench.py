"""`launch/bench.sh` measures a running server with SGLang's benchmark and reports it."""

import os
import subprocess
import sys

from tests import ROOT, harness

SCRIPT = ROOT / "launch" / "bench.sh"


def test_benchmark_of_a_running_server(checkpoint, tmp_path):
    """A flag or result that SGLang's benchmark has renamed."""
    sizes = {"CONCURRENCY": "1 2", "INPUT": "32", "OUTPUT": "4", "REQUESTS": "1"}
    with harness.server(checkpoint) as running:
        done = subprocess.run(
            [str(SCRIPT), running.base_url, str(tmp_path)],
            env={**os.environ, **sizes, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    report = (tmp_path / "report.md").read_text().splitlines()
    assert report[0] == "# 32 tokens in, 4 out"
    assert "version 0.5.23" in report[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report[6:]]
    assert [row[0] for row in rows] == ["1", "2"]
    assert all(float(row[2]) > 0 for row in rows)
    assert [row[-1] for row in rows] == ["8", "8"]
    assert "figure: " in done.stdout or "no figure: " in done.stdout

"""Gauges are written to the directory that SGLang's /metrics reads, and only if it is set."""

import os
import subprocess
import sys
import textwrap

SCRIPT = """
    import sys
    from sglang_longcat import metrics
    metrics.publish_info({"version": "1"})
    metrics.publish_bytes(part="tables", place="host", size=10)
    metrics.publish_bytes(part="tables", place="host", size=20)
    metrics.publish_bytes(part="cache", place="device", size=3)
    metrics.publish_gather(tokens=256, place="host", seconds=0.5)
    if not metrics.enabled():
        print("prometheus_client" in sys.modules)
    else:
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        print(generate_latest(registry).decode())
"""


def run(**variables):
    environment = {k: v for k, v in os.environ.items() if k != "PROMETHEUS_MULTIPROC_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_values_are_collected(tmp_path):
    lines = run(PROMETHEUS_MULTIPROC_DIR=str(tmp_path)).splitlines()
    assert 'longcat:info{version="1"} 1.0' in lines
    assert 'longcat:ngram_bytes{part="tables",place="host"} 20.0' in lines
    assert 'longcat:ngram_bytes{part="cache",place="device"} 3.0' in lines
    assert 'longcat:ngram_gather_seconds{place="host",tokens="256"} 0.5' in lines


def test_without_metrics_nothing_is_imported():
    assert run().strip() == "False"

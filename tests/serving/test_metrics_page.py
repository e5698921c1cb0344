"""/metrics has our numbers, and every number that the dashboard draws under that name."""

import json
import re
import urllib.request
from pathlib import Path

import sglang_longcat
from tests import ROOT, harness

DASHBOARD = json.loads((ROOT / "launch" / "grafana" / "longcat.json").read_text())
NAME = re.compile(r"\b(?:sglang|longcat):\w+")
# Exported only when there is something to count.
RARE = {
    "sglang:num_aborted_requests_total",
    "sglang:cached_tokens_total",
    "sglang:queue_time_seconds_bucket",
}


def drawn():
    targets = (target for panel in DASHBOARD["panels"] for target in panel["targets"])
    return {name for target in targets for name in NAME.findall(target["expr"])}


def test_dashboard_names_exist(checkpoint):
    """After one answer of several tokens."""
    with harness.server(checkpoint, enable_metrics=True) as running:
        body = {"text": "The river", "sampling_params": {"max_new_tokens": 4}, "stream": True}
        request = urllib.request.Request(
            f"{running.base_url}/generate",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=60).read()
        with urllib.request.urlopen(f"{running.base_url}/metrics", timeout=30) as response:
            page = response.read().decode()
    exported = set(NAME.findall(page))
    assert drawn() - RARE <= exported
    version = f'version="{sglang_longcat.__version__}"'
    assert re.search(rf"^longcat:info{{.*{version}.*}} 1\.0$", page, flags=re.MULTILINE)
    sizes = dict(re.findall(r'^longcat:ngram_bytes{part="(\w+)",.*} (\S+)$', page, re.MULTILINE))
    assert float(sizes["tables"]) > 1e6
    assert float(sizes["cache"]) % 64 == 0
    times = re.findall(r"^longcat:ngram_gather_seconds{.*} (\S+)$", page, re.MULTILINE)
    assert len(times) == 2
    assert all(0 < float(seconds) < 10 for seconds in times)


def test_rare_names_are_sglangs():
    """Those that a short run does not show, by SGLang's source."""
    import sglang

    source = "".join(
        file.read_text()
        for file in (Path(sglang.__file__).parent / "srt" / "observability").glob("*.py")
    )
    names = {name.removesuffix("_bucket") for name in RARE}
    assert [name for name in names if f'"{name}"' not in source] == []

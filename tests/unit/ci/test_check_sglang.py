"""`python -m ci.check_sglang` finds what moved, says where, and keeps the locked torch.

The scratch environment and the server are not tested here: they need PyPI and a minute.
"""

from ci.check_sglang import inside, report
from sglang_longcat.host import contract

FILES = {
    "srt/a.py": "class Worker:\n    def prepare(self):\n        pass\n",
    "srt/b.py": "from a import Worker\nLIMIT: int = 3\n",
}


def test_the_supported_version_has_moved_nothing():
    assert inside.compare() == []


def test_a_lost_attribute_is_reported_with_its_files(monkeypatch):
    """Red if the search looks in our own table, where each name stands."""
    lost = contract.Needs("managers.scheduler:append_stages")
    monkeypatch.setattr(contract, "ATTRIBUTES", (lost,))
    [entry] = inside.compare()
    assert entry["attribute"] == lost.target
    assert entry["expected"] == "to exist"
    assert "srt/layers/layer_boundary/factories.py" in entry["elsewhere"]
    assert "layers/decoder_layer.py" in entry["used"]
    assert "attributes.py" not in entry["used"]


def test_names_are_found_where_they_are_defined():
    assert inside.defining("Worker", FILES) == ["srt/a.py"]
    assert inside.defining("prepare", FILES) == ["srt/a.py"]
    assert inside.defining("LIMIT", FILES) == ["srt/b.py"]
    assert inside.using("Worker", FILES) == ["srt/a.py", "srt/b.py"]


def test_pins_that_the_environment_does_not_meet(monkeypatch):
    """A met one, one of another platform and torch stay out."""
    lines = [
        "jsonschema>=4",
        "openai==0.1",
        "no-such-package==2",
        "torch==1.0",
        'pywin32==1; sys_platform == "win32"',
        'pytest==1; extra == "test"',
    ]
    monkeypatch.setattr(inside, "requires", lambda _: lines)
    assert inside.pins() == ["openai==0.1", "no-such-package==2"]


def test_table():
    entry = dict.fromkeys(report.COLUMNS, "x") | {"found": "(a | b)"}
    lines = report.table("0.5.24", [entry]).splitlines()
    assert lines[0] == "SGLang 0.5.24: 1 attributes differ"
    assert lines[-1] == r"| x | x | (a \| b) | x | x |"
    assert report.table("0.5.24", []) == "SGLang 0.5.24: 0 attributes differ"

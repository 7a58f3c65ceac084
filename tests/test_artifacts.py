"""artifacts.py: computed once, found again, never half written, and renewed when code changes."""

import importlib.util
import json
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch

from gig_helpers import artifacts, profiles


@pytest.fixture(autouse=True)
def artifacts_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GIG_ARTIFACTS", str(tmp_path / "artifacts"))


def test_second_call_reads_what_the_first_made():
    calls = []

    def compute():
        calls.append(1)
        return {"x": torch.arange(3.0)}, {"note": (1, 2)}

    first = artifacts.cached("stage", {"k": 3}, compute)
    second = artifacts.cached("stage", {"k": 3}, compute)
    assert len(calls) == 1
    torch.testing.assert_close(first[0]["x"], second[0]["x"])
    assert first[1] == second[1] == {"note": [1, 2]}
    artifacts.cached("stage", {"k": 4}, compute)
    assert len(calls) == 2
    record = json.loads(next(artifacts.folder().glob("*.json")).read_text())
    assert set(record) == {"stage", "depends", "record"}


def test_failed_write_leaves_nothing(tmp_path):
    target = tmp_path / "file"

    def write(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        artifacts.write_atomically(target, write)
    assert list(tmp_path.iterdir()) == []


def test_code_counts_but_comments_do_not(tmp_path):
    def key(source):
        path = tmp_path / "step.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("step", path)
        return artifacts.key("stage", {}, code=(importlib.util.module_from_spec(spec),))

    before = key('"""Doc."""\ndef f(x):\n    return x + 1\n')
    assert key('"""Other."""\n# comment\ndef f(x):\n    """Doc."""\n    return (x + 1)\n') == before
    assert key('"""Doc."""\ndef f(x):\n    return x + 2\n') != before


def test_provenance_names_what_a_run_depends_on():
    network = SimpleNamespace(
        name="resnet50", weights="keras", version="v1", device=torch.device("cpu")
    )
    line = artifacts.provenance(profiles.get("quick"), network, "sample: 26 photographs")
    for part in ("resnet50", "keras", "v1", "26 photographs", "quick", "seed 0", version("torch")):
        assert part in line


@pytest.mark.parametrize("name", ["concepts", "classes", "interlayer"])
def test_recorded_runs_say_where_they_come_from(name):
    run = artifacts.recorded(name)
    assert run["rows"] and run["pictures"] > 1000
    assert {"made", "provenance", "machine", "settings"} <= set(run)
    assert "/" not in run["provenance"], "no path of the machine that made it"


def test_a_run_that_was_not_recorded_is_named():
    with pytest.raises(FileNotFoundError, match=r"no nothing\.json in .*: make results"):
        artifacts.recorded("nothing")

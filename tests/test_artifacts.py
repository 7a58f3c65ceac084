"""data/artifacts.py: computed once, found again, never half written, renewed when code changes."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from gig_helpers.data import artifacts
from gig_helpers.data.artifacts import cached

pytestmark = pytest.mark.usefixtures("artifacts_folder")


@pytest.fixture
def step():
    """A decorated function that tells how often it ran."""
    calls = []

    @cached("stage", ignore=("batch_size",))
    def compute(x, name="a", sizes=(1, 2), batch_size=8):
        """What it does."""
        calls.append(batch_size)
        return {"x": torch.arange(3.0), "turned": torch.arange(6).reshape(2, 3).T}

    compute.calls = calls
    return compute


def test_equal_calls_read_what_the_first_made(step, artifacts_folder):
    first = step(3)
    # Defaults, keywords, tuples and lists are the same call.
    for again in (step(3), step(x=3), step(3, "a", [1, 2]), step(3, sizes=(1, 2))):
        assert set(again) == {"x", "turned"}
        assert all(torch.equal(again[name], first[name]) for name in first)
    assert len(step.calls) == 1
    torch.testing.assert_close(first["x"], torch.arange(3.0))
    assert first["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    (file,) = artifacts_folder.iterdir()
    assert file.name.startswith("stage-")
    with safe_open(file, framework="pt") as opened:
        assert '"name": "a"' in opened.metadata()["depends"]
    assert step.__doc__ == "What it does."


@pytest.mark.parametrize(
    "one, other",
    [
        (3, 4),
        ("a", "b"),
        (None, 0),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"b": 1}),
        (torch.zeros(2), torch.ones(2)),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2, dtype=torch.int32), torch.zeros(2)),
        (SimpleNamespace(fingerprint="this"), SimpleNamespace(fingerprint="that")),
    ],
    ids=str,
)
def test_other_arguments_compute(step, one, other):
    step(one)
    step(other)
    step(one)
    step(other)
    assert len(step.calls) == 2


def test_tensors_count_by_value_and_objects_by_fingerprint(step):
    x = torch.arange(6.0).reshape(2, 3)
    for value in (x, x.clone(), x.T.contiguous().T):
        step(value)
    assert len(step.calls) == 1
    for _ in range(2):
        step({"network": SimpleNamespace(fingerprint="this")})
    assert len(step.calls) == 2


def test_ignored_arguments_change_nothing(step):
    for size in (8, 4, torch.nn.Identity()):  # not even their type
        step(3, batch_size=size)
    assert step.calls == [8]


def test_arguments_without_a_fingerprint_are_refused(step, artifacts_folder):
    for value in (torch.nn.Identity(), {1, 2}, [object()]):
        with pytest.raises(TypeError, match="has no fingerprint"):
            step(value)
    with pytest.raises(TypeError, match="missing a required argument"):
        step()
    assert not step.calls and not list(artifacts_folder.glob("*"))


def test_stages_do_not_mix():
    found = [cached(stage, ignore=())(lambda s=stage: {"x": torch.ones(1)}) for stage in "ab"]
    for compute in found:
        compute("same")
    names = {file.name for file in artifacts.folder().iterdir()}
    assert {name.partition("-")[0] for name in names} == {"a", "b"}


def test_a_failure_leaves_nothing(tmp_path, artifacts_folder, monkeypatch, step):
    target = tmp_path / "file"

    def write(path, *_):
        path.write_text("half")
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        artifacts.write_atomically(target, write)
    assert set(tmp_path.iterdir()) == before
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "save_file", lambda tensors, path, metadata: write(path))
        with pytest.raises(KeyboardInterrupt):
            step(3)
    assert list(artifacts_folder.iterdir()) == []

    @cached("broken")
    def broken():
        raise RuntimeError("no result")

    with pytest.raises(RuntimeError):
        broken()
    assert list(artifacts_folder.iterdir()) == []
    step(3)
    assert len(step.calls) == 2


def module(folder, source):
    """A module of this source, as often as asked: each in a folder of its own."""
    path = folder / f"{len(list(folder.iterdir()))}" / "step.py"
    path.parent.mkdir()
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("step", path)
    return spec, importlib.util.module_from_spec(spec)


def test_code_counts_but_comments_do_not(tmp_path):
    folder = tmp_path / "modules"
    folder.mkdir()

    def key(source):
        return artifacts.key("stage", {}, code=(module(folder, source)[1],))

    before = key('"""Doc."""\ndef f(x):\n    return x + 1\n')
    assert key('"""Other."""\n# comment\ndef f(x):\n    """Doc."""\n    return (x + 1)\n') == before
    assert key('"""Doc."""\ndef f(x):\n    return x + 2\n') != before


STEP = """
import torch
from gig_helpers.data.artifacts import cached
import beside

@cached("stage", beside)
def compute(x):
    return {"x": torch.tensor([x + beside.more()])}  # added
"""


def test_changed_code_renews(tmp_path, monkeypatch):
    folder = tmp_path / "modules"
    folder.mkdir()

    def run(source, beside):
        """The result of a program of two modules, and the number of files afterwards."""
        for name, text in (("beside", beside), ("step", source)):
            spec, loaded = module(folder, text)
            monkeypatch.setitem(sys.modules, name, loaded)
            spec.loader.exec_module(loaded)
        found = sys.modules["step"].compute(3)["x"].item()
        return found, len(list(artifacts.folder().iterdir()))

    beside = "def more():\n    return 1\n"
    assert run(STEP, beside) == (4, 1)
    assert run(STEP.replace("# added", "# summed"), beside) == (4, 1)
    assert run(STEP.replace("x + ", "2 * x + "), beside) == (7, 2), "its own module's code"
    assert run(STEP, beside.replace("1", "10")) == (13, 3), "the code that it says it depends on"
    assert run(STEP, beside) == (4, 3)


@pytest.mark.parametrize("name", ["concepts", "classes", "interlayer"])
def test_recorded_runs_say_where_they_come_from(name):
    run = artifacts.recorded(name)
    assert run["rows"] and run["pictures"] > 1000
    assert {"made", "provenance", "machine", "settings"} <= set(run)
    assert "/" not in run["provenance"], "no path of the machine that made it"


def test_a_run_that_was_not_recorded_is_named():
    with pytest.raises(FileNotFoundError, match=r"no nothing\.json in .*: make results"):
        artifacts.recorded("nothing")

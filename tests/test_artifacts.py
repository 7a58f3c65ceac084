"""data/artifacts.py: computed once, found again, never half written, renewed when code changes."""

import ast
import functools
import importlib
import importlib.util
import inspect
import pkgutil
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import save_pictures, tiny_network
from safetensors import safe_open

import experiments
import gig_helpers
from gig_helpers import Profile, decompose, fit_concepts, load_pictures, sample
from gig_helpers.data import artifacts
from gig_helpers.data.artifacts import cached, code_of, fingerprint
from gig_helpers.data.weights import Preprocessing
from gig_helpers.report.studies import study

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
    for stage in "ab":
        cached(stage)(lambda s="": {"x": torch.ones(1)})("same")
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


# ------------------------------------------------------------------- what code a result depends on

STEP = """
import torch
from gig_helpers.data.artifacts import cached
from beside import more

@cached("stage")
def compute(x):
    return {"x": torch.tensor([x + more()])}  # added
"""
BESIDE = "import below\ndef more():\n    return below.LEAST + 1\n"


def test_changed_code_renews(tmp_path, monkeypatch):
    """Of the reader's own files: the step's, the one it imports, the one that this one imports."""

    def run(step=STEP, beside=BESIDE, below="LEAST = 0\n"):
        """The result of a program of three modules, and the number of files afterwards."""
        for name, text in (("below", below), ("beside", beside), ("step", step)):
            path = tmp_path / f"{len(list(tmp_path.iterdir()))}" / f"{name}.py"
            path.parent.mkdir()
            path.write_text(text)
            spec = importlib.util.spec_from_file_location(name, path)
            loaded = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, loaded)
            spec.loader.exec_module(loaded)
        result = sys.modules["step"].compute(3)["x"].item()
        return result, len(list(artifacts.folder().iterdir()))

    assert run() == (4, 1)
    assert run(STEP.replace("# added", "# summed")) == (4, 1), "a comment"
    assert run(STEP.replace("(x):", '(x):\n    """What it does."""\n')) == (4, 1), "a docstring"
    assert run(STEP.replace("x + ", "2 * x + ")) == (7, 2)
    assert run(beside=BESIDE.replace("1", "10")) == (13, 3)
    assert run(below="LEAST = 5\n") == (9, 4)
    assert run() == (4, 4)


PACKAGE = Path(gig_helpers.__file__).parent
MAKERS = {"pfvs": "pfv", "concepts": "concepts", "codes": "codes", "study": "report.studies"}
"""The module whose code, with what it imports, is in the key of what is kept."""
PFVS = {
    "data.artifacts", "data.pictures", "data.profiles", "network", "pfv", "rules", "srd", "traced",
}  # fmt: skip
CONCEPTS = PFVS | {"clustering", "concepts", "data.paper", "lasso"}
CODES = CONCEPTS | {"codes"}
STUDY = CODES | {"curves", "gig", "importance", "report.studies"}
OUTSIDE = {
    "__init__", "graph", "paths", "extractors.sae", "extractors.simple", "report.examples",
    "report.fidelity", "report.figures", "report.provenance", "report.questions",
    "report.statistics",
}  # fmt: skip


@pytest.fixture(scope="module")
def imports():
    """The import statements of every module of the package: all that says what depends on what."""
    texts = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        statements = [ast.unparse(n) for n in nodes if isinstance(n, ast.Import | ast.ImportFrom)]
        texts[".".join(path.relative_to(PACKAGE).with_suffix("").parts)] = "\n".join(statements)
    return texts


@pytest.fixture
def keys(imports, tmp_path, monkeypatch):
    """Hash of the code behind PFVs, concepts, codes and studies, with some modules' text as given.

    It is computed of a copy of the package, each in a folder of its own.
    """

    def of_code(given):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        for module, text in (imports | given).items():
            path = folder / "copied" / f"{module.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        with monkeypatch.context() as here:
            here.syspath_prepend(str(folder))
            modules = {n: SimpleNamespace(__module__=f"copied.{m}") for n, m in MAKERS.items()}
            hashes = {name: code_of(module) for name, module in modules.items()}
        forget("copied")
        return hashes

    return of_code


def forget(package):
    for name in [m for m in sys.modules if m.partition(".")[0] == package]:
        del sys.modules[name]


def test_every_module_that_a_result_depends_on_changes_its_key(keys, imports):
    before = keys({})
    assert keys({}) == before and len(set(before.values())) == len(before)
    depend = {"pfvs": PFVS, "concepts": CONCEPTS, "codes": CODES, "study": STUDY}
    assert keys({module: f"{imports[module]}\nCHANGED = 1\n" for module in OUTSIDE}) == before
    for module in sorted(STUDY):
        after = keys({module: f"{imports[module]}\nCHANGED = 1\n"})
        changed = {name for name in before if after[name] != before[name]}
        assert changed == {name for name, modules in depend.items() if module in modules}, module


def test_libraries_are_neither_read_nor_imported(tmp_path, monkeypatch):
    """Wherever an installer put them: what it leaves beside a package says that it is one."""

    def key(library="raise RuntimeError('imported')", inner="raise RuntimeError('imported')"):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        files = {
            "packages/library-1.0.dist-info/RECORD": "",
            "packages/library/__init__.py": library,
            "packages/library/part.py": library,
            "mine/above.py": "import library.part\nfrom inner import below\n",
            "mine/inner/below.py": inner,
        }
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        with monkeypatch.context() as here:
            here.syspath_prepend(str(folder / "packages"))
            here.syspath_prepend(str(folder / "mine"))
            return code_of(SimpleNamespace(__module__="above"))

    assert key() == key(library="CHANGED = 1") != key(inner="CHANGED = 1")
    # This module's own code counts, wherever it was installed.
    monkeypatch.setattr("gig_helpers.data.artifacts._ROOT", Path("anywhere/library"))
    assert key() != key(library="CHANGED = 1")


def test_comments_layout_and_docstrings_change_no_key(keys):
    module = "lasso"
    text = (PACKAGE / f"{module}.py").read_text(encoding="utf-8")
    docstring = text.split('"""')[1]
    other = f"# A comment.\n\n{text.replace(docstring, 'Another docstring.')}\n\n"
    assert keys({module: other}) == keys({module: text})
    assert keys({module: f"{text}\nCHANGED = 1\n"})["study"] != keys({module: text})["study"]


DOUBLED = """
_single = lasso_codes

def lasso_codes(*given, **options):
    return 2 * _single(*given, **options)
"""


def test_a_study_is_run_again_when_the_lasso_changes(tmp_path, artifacts_folder, monkeypatch):
    """From codes on: what all of it rests on is what the code would now make."""
    model = tiny_network().model
    shutil.copytree(PACKAGE, tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    # A file that changes within a second would be read from its old bytecode.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))

    def importance():
        forget("copied")
        copied = importlib.import_module("copied")
        studies = importlib.import_module("copied.report.studies")
        network = copied.Network(model, device="cpu", input_size=(16, 16))
        block, generator = network.blocks[-1], torch.Generator().manual_seed(0)
        vectors = torch.randn(3, 8, generator=generator)
        beta, labels = network.bn_shift(block), torch.arange(3)
        concepts = copied.Concepts(vectors, beta, labels, block, lam=0.1)
        images = torch.randn(1, 3, 16, 16, generator=generator)
        d = copied.decompose(network, images, {block: concepts})
        kept = studies.study(d, block, 2, ["activation"], copied.Profile())
        return kept.importance["activation"]

    first, again = importance(), importance()
    assert torch.equal(first, again) and first.any()
    assert len(list(artifacts_folder.iterdir())) == 2, "codes and study"
    lasso = tmp_path / "copied" / "lasso.py"
    lasso.write_text(lasso.read_text(encoding="utf-8") + DOUBLED, encoding="utf-8")
    torch.testing.assert_close(importance(), 2 * first)
    assert len(list(artifacts_folder.iterdir())) == 4
    forget("copied")


def in_a_notebook(source):
    """What a cell defines as ``it``: its module is the main one, and has no file."""
    notebook = ModuleType("__main__")
    exec(source, vars(notebook))
    return notebook.it


FUNCTION = """
def it(x, power=2):
    '''What it does.'''
    def inner(y):
        return y + 3
    return inner(x) ** power if x in {"a", "b"} else x.shape
"""
CLASS = """
from functools import cached_property
from gig_helpers import Concepts
class Base(Concepts):
    def encode(self, x, *, tol=0.0):
        return 2 * x
class it(Base):
    keep = 3
    @property
    def most(self):
        return self.keep + 1
    @cached_property
    def least(self):
        return self.keep - 1
    @staticmethod
    def other():
        return 5
"""


@pytest.mark.parametrize(
    "source, same, others",
    [
        (
            FUNCTION,
            ["What it does.", "Other words."],
            [("power=2", "power=3"), ("y + 3", "y + 4"), ("x.shape", "x.dtype"), ('"b"', '"c"')],
        ),
        (
            CLASS,
            ["2 * x", "2 * x  # twice"],
            [("keep = 3", "keep = 4"), ("self.keep + 1", "self.keep + 2"), ("2 * x", "3 * x"),
             ("self.keep - 1", "self.keep - 2"), ("return 5", "return 6"), ("most", "more")],
        ),
    ],
    ids=["function", "class"],
)  # fmt: skip
def test_code_without_a_file_counts_by_what_it_does(source, same, others):
    known = code_of(in_a_notebook(source))
    assert code_of(in_a_notebook(source)) == known == code_of(in_a_notebook(source.replace(*same)))
    changed = [code_of(in_a_notebook(source.replace(*other))) for other in others]
    assert len({known, *changed}) == 1 + len(others)


def of_power(power):
    def raised(x):
        return x**power

    return raised


def by_default(times):
    def scaled(x, *, by=times):
        return x * by

    return scaled


def test_functions_of_one_file_are_told_apart():
    """They are of one code, but a choice between them is an argument like any other."""

    def fit(x, epochs):
        return x * epochs

    def other(x, epochs):
        return x + epochs

    functions = [
        fit, other, functools.partial(fit, epochs=5), functools.partial(fit, epochs=6),
        functools.partial(other, epochs=5), of_power(2), of_power(3), lambda x: x, lambda x: -x,
        functools.partial(fit, 5), functools.partial(fit, 6), by_default(2), by_default(3),
    ]  # fmt: skip
    assert len({code_of(function) for function in functions}) == 1
    marks = [fingerprint(function) for function in functions]
    assert all(marks.count(mark) == 1 for mark in marks)
    assert fingerprint(of_power(2)) == fingerprint(of_power(2))


IGNORED = {
    "codes": {"maps"}, "study": {"batch_size"}, "atlas-relevance": {"batch_size"},
    "atlas-edges": {"batch_size"}, "uniform": {"batch_size"}, "early-relevance": {"batch_size"},
    "early-curves": {"batch_size"}, "fit-seconds": {"fitted"},
}  # fmt: skip
"""Arguments of a step that leave its result as it is."""


def test_every_argument_of_every_step_counts_but_those_that_change_no_result(monkeypatch):
    found = {}

    def key(stage, depends, code):
        found[stage] = {*depends}
        raise LookupError

    monkeypatch.setattr(artifacts, "key", key)
    every = [
        importlib.import_module(module.name)
        for package in (gig_helpers, experiments)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ]
    steps = {
        step for module in every for step in vars(module).values()
        if inspect.isfunction(step) and "stage" in inspect.getclosurevars(step).nonlocals
    }  # fmt: skip
    for step in steps:
        names = [*inspect.signature(step).parameters]
        with pytest.raises(LookupError):
            step(**{name: name for name in names})
        stage = inspect.getclosurevars(step).nonlocals["stage"]
        assert found[stage] == {*names} - IGNORED.get(stage, set()), stage
    assert {*IGNORED} < {*found} and len(found) == len(steps) > 12


def test_what_pfvs_are_found_again_by(tmp_path, artifacts_folder):
    network = tiny_network(preprocessing=Preprocessing(16, 16))
    photographs = save_pictures(tmp_path / "pictures", 2)
    pictures = load_pictures(str(photographs), network)

    def run(network=network, pictures=pictures, **sizes):
        sizes = {"per_image": 2, **sizes}
        return sample(network, pictures, Profile(**sizes)).fingerprint

    plain = run()
    assert run() == run(gap=0.3, name="another") == plain, "sizes that PFVs do not depend on"
    others = [
        run(seed=1), run(per_image=3), run(batch_size=3), run(blocks=network.blocks[:1]),
        run(network=tiny_network(seed=1, preprocessing=Preprocessing(16, 16))),
        run(pictures=pictures.subset([1, 0])),
        run(pictures=load_pictures(str(photographs), preprocessing=Preprocessing(16, 20))),
    ]  # fmt: skip
    assert len({plain, *others}) == 1 + len(others) == len(list(artifacts_folder.iterdir()))


def test_a_step_is_made_again_when_its_own_code_has_changed(
    tmp_path, artifacts_folder, monkeypatch
):
    network = tiny_network(preprocessing=Preprocessing(16, 16))
    pictures = load_pictures(str(save_pictures(tmp_path / "pictures", 2)), network)
    block = network.blocks[0]
    profile = Profile(per_image=6, blocks=(block,), pfvs_per_concept=3, families=None)

    def made():
        pfvs = sample(network, pictures, profile)
        concepts = fit_concepts(pfvs, profile, extractor="kmeans")  # of another module
        study(decompose(network, pictures[[0]], concepts), block, 0, ["random"], profile)
        return Counter(path.name.partition("-")[0] for path in artifacts_folder.iterdir())

    before = made()
    assert made() == before == {"pfv": 1, "concepts": 1, "codes": 1, "study": 1}
    real = artifacts.code_of
    for step, module in zip(("pfv", "concepts", "codes", "study"), MAKERS.values(), strict=True):
        monkeypatch.setattr(
            artifacts, "code_of",
            lambda it, m=module: real(it) + it.__module__.endswith(f"gig_helpers.{m}") * " changed",
        )  # fmt: skip
        count, before = before[step], made()
        assert before[step] > count, step


@pytest.mark.parametrize("name", ["concepts", "classes", "interlayer"])
def test_recorded_runs_say_where_they_come_from(name):
    run = artifacts.recorded(name)
    assert run["rows"] and run["pictures"] > 1000
    assert {"made", "provenance", "machine", "settings"} <= set(run)
    assert "/" not in run["provenance"], "no path of the machine that made it"


def test_a_run_that_was_not_recorded_is_named():
    with pytest.raises(FileNotFoundError, match=r"no nothing\.json in .*: make results"):
        artifacts.recorded("nothing")

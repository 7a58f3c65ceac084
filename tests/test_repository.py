"""Rules that the repository keeps: notebooks, requirements, the one address, docstrings."""

import ast
import inspect
import re
import sys

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from bookbuild import ROOT, chapters
from bookbuild.execute import requirements
from bookbuild.setup_cell import TAG, address, carried_address, cell

MODULE = sorted(path for path in (ROOT / "gig_helpers").glob("*.py") if path.stem != "__init__")
CODE_CELLS = 40
FIGURE = re.compile(r"plt\.show\(|\.show\(\)|plots\.(?!save_)")
"""What a cell that leaves a figure says, outside of the functions that it defines."""


def _code(notebook):
    return [part for part in notebook.cells if part.cell_type == "code"]


@pytest.fixture(params=chapters(), ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_notebook_has_no_outputs(notebook):
    nbformat.validate(notebook)
    for part in _code(notebook):
        assert not part.outputs, part.source
        assert part.execution_count is None, part.source
    assert "widgets" not in notebook.metadata


def test_set_up_cell_is_the_one(notebook):
    first = _code(notebook)[0]
    assert TAG in first.metadata.get("tags", []), "run `make address`"
    assert first.source == cell(), "run `make address`"


def test_notebook_is_short(notebook):
    assert len(_code(notebook)) <= CODE_CELLS


def test_figures_have_captions_and_alt_text(notebook):
    for part in _code(notebook)[1:]:  # the set-up cell draws nothing
        done = [
            ast.unparse(statement)
            for statement in ast.parse(part.source).body
            if not isinstance(statement, ast.FunctionDef)
        ]
        if FIGURE.search("\n".join(done)):
            myst = part.metadata.get("mystnb", {})
            assert myst.get("image", {}).get("alt", "").strip(), part.source
            assert myst.get("figure", {}).get("caption", "").strip(), part.source


def test_chapter_has_the_skeleton(notebook):
    text = [part.source for part in notebook.cells if part.cell_type == "markdown"]
    assert text[0].startswith("# "), "the first cell opens the chapter with its title"
    headings = re.findall(r"^## +(.+?) *$", "\n\n".join(text), re.MULTILINE)
    assert headings[-2:] == ["Summary", "Exercises"]
    assert any("## Summary\n\n:::{admonition}" in part for part in text), "the summary is a box"
    exercises = "\n".join(text).rsplit("## Exercises", 1)[1]
    assert "dropdown" in exercises or "hide-" in str(
        [part.metadata.get("tags", []) for part in notebook.cells[-6:]]
    ), "exercises have hidden solutions"


def test_one_address():
    assert carried_address() == address(), "run `make address`"


def test_pyproject_repeats_requirements():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.+?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block
    module = {Requirement(line) for line in re.findall(r'"(.+?)"', block.group(1))}
    assert module <= set(requirements())


def test_every_page_of_the_contents_exists():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    names = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    written = [name for name in [toc["root"], *names] if name != "book/provenance"]
    for name in written:
        assert any((ROOT / f"{name}{ending}").exists() for ending in (".md", ".ipynb")), name


def _public(module):
    """The public functions of a module and of its public classes, by name."""
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        yield name, member
        if inspect.isclass(member):
            for inner, method in vars(member).items():
                if not inner.startswith("_") and inspect.isfunction(method):
                    yield f"{name}.{inner}", method


@pytest.fixture(params=MODULE, ids=lambda path: path.stem)
def module(request):
    from importlib import import_module

    return import_module(f"gig_helpers.{request.param.stem}")


def test_docstrings_are_complete(module):
    """Public functions name their parameters, tensors' shapes and every error they raise."""
    missing = []
    for name, member in _public(module):
        doc = inspect.getdoc(member) or ""
        if not doc:
            missing.append(f"{name}: no docstring")
        if not inspect.isfunction(member):
            continue
        signature = inspect.signature(member)
        # Tensors by name (a state dict, an artifact) have no one shape.
        plain = re.sub(r"dict\[str, [\w.]*Tensor\]", "", str(signature))
        if (
            "Tensor" in plain
            and not re.search(r"\((?:\.\.\.|[\w*+'·² ]+),", doc)
            and "scalar" not in doc
        ):
            missing.append(f"{name}: no shapes")
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(member)))
        for raised in {node.exc.func.id for node in ast.walk(tree) if _names_an_error(node)}:
            if raised not in doc:
                missing.append(f"{name}: {raised} is raised and not in the docstring")
    assert not missing


PAPER = (
    r"\b(?:eq|Fig)s?\. \d|[Ee]quations? \d|[Ss]ection \d|[Aa]ppendix [A-G]|Figures? \d|Tables? \d"
)
SOURCE = re.compile(PAPER + r"|\([A-Z][^()]*, \d{4}|not in the paper")
METHOD = ("network", "srd", "pfv", "clustering", "baselines", "decomposition", "gig")
METHOD += ("evaluation", "graph")


def test_the_method_says_where_it_comes_from(module):
    """Every file of the method names its equation, section or figure; functions and classes may
    name an article instead, or say that they are not in the paper. Methods have their class's.
    """
    name = module.__name__.rpartition(".")[2]
    if name not in METHOD:
        return
    assert re.search(PAPER, module.__doc__), f"{name}: no equation, section or figure"
    docs = {member: inspect.getdoc(part) for member, part in _public(module) if "." not in member}
    assert not [member for member, doc in docs.items() if not SOURCE.search(doc or "")]


def _names_an_error(node) -> bool:
    return (
        isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    )


def test_imports_point_up_the_list(module):
    """A step of the method imports only steps before it."""
    order = (
        "profiles assets artifacts network srd pfv clustering baselines decomposition gig "
        "evaluation graph plots"
    ).split()
    # artifacts, the shared store, is used by assets to write files atomically.
    rank = {name: index for index, name in enumerate(order)} | {"artifacts": 0}
    own = module.__name__.rsplit(".", 1)[1]
    source = inspect.getsource(sys.modules[module.__name__])
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            imported |= {node.module} if node.module else {alias.name for alias in node.names}
    assert not [name for name in imported & set(order) if rank[name] > rank[own]]

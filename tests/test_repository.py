"""Rules that the repository keeps: notebooks, requirements, the one address, docstrings."""

import ast
import inspect
import pkgutil
import re
import subprocess
from importlib import import_module

import nbformat
import pytest
from packaging.requirements import Requirement

import gig_helpers
from bookbuild import ROOT, chapters, contents
from bookbuild.execute import requirements
from bookbuild.setup_cell import TAG, address, carried_address, cell

SPINE = (
    "network srd pfv clustering lasso concepts codes gig importance curves graph extractors.simple "
    "extractors.sae report.fidelity"
).split()
"""The files of the method."""
CODE_CELLS, CODE_WIDTH = 40, 84
"""A wider line runs out of its frame on a page of 1280 pixels; book/ruff.toml says the same."""
ANSWER = re.compile(r"\b(?:Markdown|say)\(")
"""What a cell says that tells in words, by rule, what the numbers beside it show."""
FIGURE = re.compile(
    r"plt\.show\(|\.show\(\)|\bfigures\.(?!style|COLOURS)|(?:still|interactive)_graph\("
)
"""What a cell that leaves a figure says, outside of the functions that it defines."""
EXERCISE = re.compile(r"^```\{exercise\} .+\n:label: (ex-\S+)\n((?s:.+?))^```$", re.MULTILINE)
SOLUTION = re.compile(
    r"^```\{solution(?:-start)?\} (\S+)\n:class: dropdown\n"
    r"(?:(?!```)((?s:.+?))^```$|```\n((?s:.+?))^```\{solution-end\}\n```$)",
    re.MULTILINE,
)
"""Exercises, and solutions that hold their text or begin and end around cells of code."""


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
    lines = [line for part in _code(notebook) for line in part.source.splitlines()]
    assert not [line for line in lines if len(line) > CODE_WIDTH]


def test_every_figure_is_answered(notebook):
    """Before the next heading a cell says what the figure shows."""
    waiting = []
    for part in notebook.cells:
        if part.cell_type == "markdown":
            assert not waiting or not re.search("^## ", part.source, re.MULTILINE), waiting
        elif "figure" in part.metadata.get("mystnb", {}):
            waiting.append(part.metadata.mystnb.figure.name)
        elif ANSWER.search(part.source):
            waiting.clear()


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


def test_chapter_asks_colab_for_a_gpu(notebook):
    assert notebook.metadata["accelerator"] == "GPU"


def test_chapter_has_the_skeleton(notebook):
    text = [part.source for part in notebook.cells if part.cell_type == "markdown"]
    assert text[0].startswith("# "), "the first cell opens the chapter with its title"
    assert "*Where we are:* photograph → " in text[0]
    headings = re.findall(r"^## +(.+?) *$", "\n\n".join(text), re.MULTILINE)
    assert headings[-1] == "Exercises"
    assert 2 <= sum(part.count("```{quiz} ") for part in text) <= 3
    assert "\n\n:::{admonition} In short" in text[0], "what it comes to stands first, in a box"


def test_every_exercise_has_one_written_solution(notebook):
    """It asks for a prediction; its one solution names it, is closed, and says why in words."""
    text = "\n".join(
        part.source if part.cell_type == "markdown" else f"CODE {bool(ANSWER.search(part.source))}"
        for part in notebook.cells
    ).rsplit("\n## Exercises", 1)[1]
    exercises, solutions = EXERCISE.findall(text), SOLUTION.findall(text)
    assert 2 <= len(exercises) == text.count("{exercise}") <= 4
    assert [of for of, *_ in solutions] == [label for label, _ in exercises], "one each, in order"
    assert len(solutions) == text.count("{solution}") + text.count("{solution-start}")
    for label, question in exercises:
        assert "*Predict first:*" in question, label
    for label, inside, around in solutions:
        said = re.sub(r"\$[^$]+\$|CODE \w+", "", inside or around)
        assert len(said.split()) >= 25, f"{label}: why is it so?"
        assert "CODE False" not in around, f"{label}: code says in words what came of it"
    assert "CODE" not in SOLUTION.sub("", text)


def test_figures_are_referred_to_by_name(notebook):
    """{numref} knows their numbers; the paper's, ten of them, are written with a capital."""
    text = "\n".join(part.source for part in notebook.cells)
    assert not re.findall(r"\bfigures? \d+|\bFig(?:ure)?s?\.? (?:1[1-9]|[2-9]\d)\b", text)


def test_one_address():
    assert carried_address() == address(), "run `make address`"


def test_pyproject_repeats_requirements():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.+?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block
    module = {Requirement(line) for line in re.findall(r'"(.+?)"', block.group(1))}
    assert module <= set(requirements())


def test_an_index_named_for_torch_is_asked_before_all_else():
    """So the CPU build of torch and torchvision is there when the other packages are installed."""
    index = "https://example.org/cpu"
    command = ["make", "--dry-run", "--always-make", f"TORCH_INDEX={index}", ".venv/.ready"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    lines = [line for line in lines.splitlines() if " install " in line]
    (first,) = (
        n for n, line in enumerate(lines) if f"torch torchvision --index-url {index}" in line
    )
    assert first < min(n for n, line in enumerate(lines) if "requirements.txt" in line)


def test_every_page_of_the_contents_exists():
    for name in set(contents()) - {"book/provenance"}:  # the build writes that one
        assert any((ROOT / f"{name}{ending}").exists() for ending in (".md", ".ipynb")), name


def test_only_the_first_chapters_look_inside_the_network():
    """From chapter 3 on nothing knows that it is a ResNet, but for Captum's LRP in chapter 11."""
    for chapter in (each for each in chapters()[2:] if each.stem != "11_side_by_side"):
        code = "\n".join(part.source for part in _code(nbformat.read(chapter, as_version=4)))
        assert not re.search(r"network\.(model|block\(|fused)", code), chapter.stem


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


PAPER = (
    r"\b(?:eq|Fig)s?\. \d|[Ee]quations? \d|[Ss]ections? \d|[Aa]ppendix [A-G]|Figures? \d|Tables? \d"
    r"|\(\d\.\d(?:\.\d)?\)"
)
SOURCE = re.compile(PAPER + r"|\([A-Z][^()]*, \d{4}|not in the paper")
SHAPE = re.compile(r"\((?:\.\.\.|[\w*+'·² ]+),|scalar")


@pytest.mark.parametrize("name", SPINE)
def test_the_method_says_where_it_comes_from_and_shapes(name):
    """No tool checks this: every file of the method names its equation, section or figure, and so
    do functions and classes, or an article, or that they are not in the paper (methods have their
    class's); tensors have shapes.
    """
    module = import_module(f"gig_helpers.{name}")
    assert re.search(PAPER, module.__doc__), f"{name}: no equation, section or figure"
    docs = {member: inspect.getdoc(part) or "" for member, part in _public(module)}
    assert not [
        member for member, doc in docs.items() if "." not in member and not SOURCE.search(doc)
    ]
    for member, part in _public(module):
        # Tensors by name (a state dict, an artifact) have no one shape.
        if inspect.isfunction(part):
            plain = re.sub(r"dict\[str, [\w.]*Tensor\]", "", str(inspect.signature(part)))
            assert "Tensor" not in plain or SHAPE.search(docs[member]), f"{member}: no shapes"


MODULES = [part.name for part in pkgutil.walk_packages(gig_helpers.__path__, "gig_helpers.")]


def _lacks_an_example(module):
    """Functions and classes whose docstring shows no use of them, and methods that neither their
    own nor their class's does. Exceptions are exempt: they are raised, not called.
    """
    for name, part in _public(module):
        owner = getattr(module, name.split(".")[0])
        if inspect.isclass(owner) and issubclass(owner, Exception):
            continue
        shown = ">>> " in (inspect.getdoc(part) or "")
        if "." in name and not shown:
            lines = re.findall(r"^(?:>>>|\.\.\.) .*$", inspect.getdoc(owner) or "", re.MULTILINE)
            shown = f".{part.__name__}(" in "\n".join(lines)
        if not shown:
            yield f"{module.__name__.removeprefix('gig_helpers.')}.{name}"


def test_public_functions_have_an_example():
    lacking = [name for module in MODULES for name in _lacks_an_example(import_module(module))]
    assert not lacking, "a function shows how it is used: add a doctest"


def test_the_api_pages_list_every_module_once():
    """Each with its public members, which automodule finds by itself; the first page names it."""
    first, *others = (ROOT / f"{name}.md" for name in contents() if name.startswith("book/api"))
    pages = [page.read_text(encoding="utf-8") for page in (first, *others)]
    listed = re.findall(r"^\.\. automodule:: (\S+)$", "\n".join(pages), re.MULTILINE)
    nothing = {"gig_helpers.data", "gig_helpers.report", "gig_helpers.report.__main__"}
    assert sorted(listed) == sorted({"gig_helpers", *MODULES} - nothing)
    assert set(re.findall(r"<(gig_helpers\S*)>`", pages[0])) == {*listed} - {"gig_helpers"}


def test_no_key_lacks_what_a_result_depends_on():
    """Batch sizes aside, and what only helps to find it."""
    files = [*ROOT.glob("gig_helpers/**/*.py"), *ROOT.glob("experiments/*.py")]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    found = re.findall(r"@artifacts\.cached\(.*?ignore=(.*)\)", text)
    assert {*found} == {'("batch_size",)', '("maps",)', '("fitted",)'}

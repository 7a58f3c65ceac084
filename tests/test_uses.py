"""What README and how-to page promise: five uses from gig_helpers alone, short, and they run."""

import ast
import re

import numpy as np
import pytest
import torch
from conftest import randomised
from PIL import Image
from torchvision.models.resnet import BasicBlock, ResNet

from bookbuild import ROOT
from gig_helpers import METHODS, attribute

README, HOW_TO, FIRST_PAGE = "README.md", "book/howto.md", "book/intro.md"
MOST = {"as a graph": 7, "rests on": 2, "wrong": 3, "in common": 3, "of your own": 3}
"""Lines that each use may take, but for imports and what the uses before it have made."""
WIDTH = 84
"""A wider line runs out of its frame on a page of 1280 pixels."""
CLASSES = ("finch", "junco", "owl", "wren", "robin")


def code_of(page: str) -> str:
    """The Python code of the section "In Python"."""
    text = (ROOT / page).read_text(encoding="utf-8")
    section = re.search(r"^## In Python\b.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", section[0], re.MULTILINE | re.DOTALL))


def uses(page: str) -> dict[str, list[str]]:
    """Its lines by use: each begins with a comment that says what it is for."""
    by_use: dict[str, list[str]] = {}
    for line in code_of(page).splitlines():
        if line.startswith("# "):
            by_use[line] = []
        elif line and "import" not in line:
            [*by_use.values()][-1].append(line)
    return by_use


def birds(seed: int) -> torch.nn.Module:
    """An untrained model for 64 × 64 pixels, which says so as models of timm do."""
    torch.manual_seed(seed)
    model = randomised(ResNet(BasicBlock, [1, 1, 1, 2], num_classes=len(CLASSES)))
    model.default_cfg = {"input_size": (3, 64, 64), "crop_pct": 1.0}
    return model


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the how-to page's uses leave, run one after another: names, and each's last value."""
    here = tmp_path_factory.mktemp("uses")
    colours = np.random.default_rng(0)
    for name in CLASSES:
        (here / "birds" / name).mkdir(parents=True)
        for n in range(2):
            patches = colours.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(patches).resize((64, 64), 0).save(here / "birds" / name / f"{n}.png")
    imported = [line for line in code_of(HOW_TO).splitlines() if "import" in line]
    assert all(line.startswith("from gig_helpers import ") for line in imported)
    given = {"model": birds(0), "other_model": birds(1), "names": CLASSES, "folder": here / "birds"}
    values = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.delenv("GIG_ARTIFACTS", raising=False)
        exec("\n".join(imported), given)
        for lines in uses(HOW_TO).values():
            *before, last = ast.parse("\n".join(lines)).body
            shows = isinstance(last, ast.Expr)
            exec(ast.unparse(before if shows else [*before, last]), given)
            values.append(eval(ast.unparse(last), given) if shows else None)
        yield given, values, here
        METHODS.pop("peak")


def test_uses_are_short():
    for (title, lines), (about, most) in zip(uses(HOW_TO).items(), MOST.items(), strict=True):
        assert about in title
        assert len(lines) <= most, title
        assert max(map(len, lines)) <= WIDTH, title


def test_the_readme_has_the_same():
    assert [*uses(README).values()] == [*uses(HOW_TO).values()]
    assert "from gig_helpers import *" in code_of(README)


def test_the_first_page_begins_with_the_first_of_them():
    text = (ROOT / FIRST_PAGE).read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    first, *_ = uses(HOW_TO).values()
    assert [line for line in code.splitlines() if line and "import" not in line] == first


def test_a_graph_with_crops(results):
    given, _, here = results
    page = (here / "graph.html").read_text(encoding="utf-8")
    said = CLASSES[int(given["pfvs"].predictions()[0])]
    assert f"<title>Concept graph: {said}</title>" in page
    nodes = given["shown"].examples
    assert {node.split("/")[0] for node in nodes} == set(given["network"].blocks)
    assert page.count("jpeg;base64,") == 2 * len(nodes) + 1  # node and card; the picture
    assert list((here / "artifacts").glob("pfv-*"))


def test_what_a_class_rests_on(results):
    given, values, _ = results
    table = given["table"]
    assert list(table) == ["relevance", "low", "high", "in_use"]
    assert table.index.names == ["block", "concept"]
    assert (table["low"] <= table["relevance"]).all() and (
        table["relevance"] <= table["high"]
    ).all()
    assert values[1].equals(table[:10])


def test_why_it_was_wrong(results):
    given, values, _ = results
    pfvs, i = given["pfvs"], given["i"]
    said, label = (CLASSES[c] for c in (pfvs.predictions()[i], given["pictures"].labels[i]))
    table = values[2]
    assert list(table) == [said, label, "pull"] and table.index.name == "concept"
    assert np.allclose(table[said] - table[label], table["pull"], atol=1e-5)
    assert len(given["mistaken"].logits({"layer4.1": table.index[:2].tolist()})) == 1


def test_what_two_networks_have_in_common(results):
    given, values, _ = results
    table = values[3]
    assert list(table) == ["match", "correlation"] and table.index.name == "concept"
    assert set(table["match"]) <= set(range(len(given["theirs"].concepts["layer4.1"])))
    assert table["correlation"].between(-1, 1 + 1e-6).all() and len(table)


def test_a_method_of_ones_own(results):
    d = results[0]["d"]
    peaks = attribute(d, "layer4.1", [0, 3], method="peak")
    assert peaks.shape == (1, 2, len(d.concepts["layer4.1"]))
    assert torch.equal(peaks[0, 1], d.codes["layer4.1"][0].amax(dim=0))

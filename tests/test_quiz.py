"""Questions that a page checks by itself."""

import pytest
from bs4 import BeautifulSoup
from sphinx.cmd.build import build_main

QUESTION = """# Page

```{quiz} Is $x$ & y one?
- [ ] No
  It *is*.
- [x] Yes
  By
  definition.
```
"""


@pytest.fixture
def built(tmp_path):
    """Builds a page; returns what Sphinx ends with, and the page."""

    def build(text):
        (tmp_path / "conf.py").write_text('extensions = ["bookbuild.quiz", "myst_parser"]\n')
        (tmp_path / "index.md").write_text(text)
        code = build_main([str(tmp_path), str(tmp_path / "out"), "-Q", "-W", "--keep-going"])
        page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
        return code, BeautifulSoup(page, "html.parser")

    return build


def test_a_question_is_a_group_of_labelled_buttons(built):
    code, page = built(QUESTION + QUESTION.replace("# Page\n", ""))
    first, second = page.select("fieldset.quiz")
    assert code == 0 and first.legend.get_text() == "Is $x$ & y one?"
    assert [label["class"] for label in first("label")] == [["wrong"], ["right"]]
    assert first("label")[1].get_text() == " YesRight. By definition."
    assert first.select_one(".why em").get_text() == "is"
    names = [{button["name"] for button in quiz("input")} for quiz in (first, second)]
    assert len(names[0]) == len(names[1]) == 1 and names[0] != names[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[x]", "[ ]"), ("[ ]", "[x]"), ("  It *is*.\n", ""), ("- ", ""),
        ("- [ ] No\n  It *is*.\n", ""), ("[ ]", "[]"), ("  definition", "definition"),
    ],
)  # fmt: skip
def test_a_question_without_one_right_answer_or_a_reason_fails_the_build(built, old, new):
    assert built(QUESTION)[0] == 0 != built(QUESTION.replace(old, new))[0]

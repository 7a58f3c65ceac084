"""bookbuild/verdicts.py: verdicts follow from intervals, and every claim finds its evidence."""

import pytest

from bookbuild import verdicts
from gig_helpers.report.statistics import Comparison

BETTER, WORSE, OPEN = (
    Comparison(1, 0.5, 2, 0.01), Comparison(-1, -2, -0.5, 0.01), Comparison(0.1, -1, 1, 0.9)
)  # fmt: skip


@pytest.mark.parametrize(
    ("tests", "word"),
    [
        ([BETTER, BETTER], "holds"),
        ([BETTER, OPEN], "holds at 0"),
        ([BETTER, OPEN, WORSE], "holds at 0, the opposite at 2"),
        ([WORSE, OPEN], "does not hold"),
        ([OPEN], "not decided"),
    ],
)
def test_verdicts_by_rule(tests, word):
    tests = {str(n): test for n, test in enumerate(tests)}
    assert verdicts.verdict(tests) == word
    assert verdicts.verdict(tests, matters=2.1) == "too small to matter"
    assert verdicts.verdict(tests, matters=0.9) == word, "some interval reaches beyond it"


def test_most_places_are_more_than_half():
    every = "abcd"
    words = [verdicts._at_most(every[:n], every) for n in range(5)]
    assert words == ["does not hold"] * 3 + ["holds at a, b, c", "holds"]


def test_what_is_ours_less_theirs_has_its_ends_turned():
    found = verdicts._turned({"mean": 1, "low": 0.5, "high": 2, "p_value": 0.01})
    assert (found.mean, found.low, found.high) == (-1, -2, -0.5) and found.verdict == "worse"


def test_every_row_has_a_claim_its_evidence_and_a_verdict():
    said, listed = verdicts.page()
    rest = listed.splitlines()
    words = ("holds", "does not hold", "not decided", "too small to matter")
    start = rest.index("| Claim | Evidence here | Verdict |")
    lines = rest[start : rest.index(":::", start)]
    assert len(lines) >= 12 and lines[1] == "|---|---|---|"
    claims = []
    for line in lines[2:]:
        claim, evidence, word = line.strip("| ").split(" | ")
        assert claim and evidence and word.strip("*").startswith(words)
        claims.append((claim, evidence, word.strip("*")))
    assert len({claim for claim, *_ in claims}) == len(claims)
    assert said == verdicts.summary(claims) + "\n" and said.startswith(f"Of {len(claims)} claims")
    # Question by question the same claims stand with the same verdicts, and at a glance as many.
    there = rest.index("<!-- one by one -->")
    short = [line for line in rest[there:start] if line[:2] == "| " and line[:7] != "| Claim"]
    assert short == [f"| {c} | {verdicts.sign((c, '', w))} {w} |" for c, _, w in claims]
    glance = "".join(line.strip("| ").split(" | ")[1] for line in rest[2 : rest.index("")])
    assert sorted(glance) == sorted(verdicts.sign(row) for row in claims)


def test_better_everywhere_is_what_the_table_says(monkeypatch):
    minus = {"mean": 1.0, "low": 0.5, "high": 2.0, "p_value": 0.01}
    rivals = ("random", "random in use", "wrong target", "gradient")
    pairs = [{"source": a, "target": b, "gig_minus": dict.fromkeys(rivals, minus)}
             for a, b in (("layer1.2", "layer2.3"), ("layer2.3", "layer3.0"))]  # fmt: skip
    monkeypatch.setattr(verdicts.artifacts, "recorded", lambda name: {"rows": pairs})
    assert [word for *_, word in verdicts._pairs()] == ["holds"] * 4
    # Areas that are known to ± 0.6 together leave open what is nearer to 0 than that.
    pairs[1]["gig_minus"] = pairs[1]["gig_minus"] | {"gradient": minus | {"bracket": 0.6}}
    *_, (_, evidence, word) = verdicts._pairs()
    assert word == "holds at 1.2 → 2.3" and "*not decided* at 2.3 → 3.0" in evidence

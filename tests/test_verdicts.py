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
    glance = " ".join(line.strip("| ").split(" | ")[1] for line in rest[2 : rest.index("")])
    assert sorted(glance.replace(" ", "")) == sorted(verdicts.sign(row) for row in claims)
    assert all(len({*equal}) == 1 for equal in glance.split())


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


READ = {
    "classes": lambda row, path: "probability/gig_minus" in path,
    "rivals": lambda row, path: "probability" in path,
    "early": lambda row, path: "insertion" in path,
    "readings": lambda row, path: "gig_minus" in path,
    "edges": lambda row, path: (
        (row["of"], row["target"] != "class") == ("families", True)
        and path.startswith(("/ranks", "/patched"))
    ),
    "transfer": lambda row, path: path.startswith("/ranks"),
    "circuits": lambda row, path: row["what"] == "faithful",
    "watermarks": lambda row, path: (
        ("pairs" in path or "probability" in path)
        if row["mark"] == "the one learnt"
        else "classes" not in path
    ),
    "latents": lambda row, path: row["extractor"] == "sae" and path.endswith("suspects, 3"),
    "planted": lambda row, path: row["planted"],
    "concepts": lambda row, path: (
        not row["at_level"] and path.endswith(("left_out/minus_ours", "own_codes/minus_ours"))
    ),
    "fewer": lambda row, path: row["photographs"] < 1000 and "error" in path,
    "sampling": lambda row, path: "drawn by contribution" in path,
    "controls": lambda row, path: "likeness of classes/apart/blind less any" in path,
}
"""Which paired differences of a file lie above 0 where all is as the paper and the book claim."""


def turned(part, row, above, path=""):
    """A row whose paired differences are 1 or −1, as they should be."""
    if not isinstance(part, dict):
        return part
    if "p_value" in part:
        mean = 1.0 if above(row, path) else -1.0
        return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "p_value": 0.01}
    return {name: turned(of, row, above, f"{path}/{name}") for name, of in part.items()}


def test_every_claim_reads_what_it_says_and_in_its_own_direction(monkeypatch):
    real = verdicts.artifacts.recorded

    def recorded(name):
        above = READ.get(name, lambda row, path: True)
        file = real(name)
        return file | {"rows": [turned(row, row, above) for row in file["rows"]]}

    monkeypatch.setattr(verdicts.artifacts, "recorded", recorded)
    by_shares = (verdicts._controls, verdicts._families)
    parts = [part for _, parts in verdicts.ASKED for part in parts if part not in by_shares]
    rows = [*(row for part in parts for row in part()), next(verdicts._controls())]
    at_level = {claim for claim, *_ in rows if claim.endswith("as many as families")}
    found = {claim for claim, _, word in rows if word != "holds"}
    assert len(rows) > 40 and len(at_level) == 5 and found == at_level
    assert {word for claim, _, word in rows if claim in at_level} == {"does not hold"}


def test_what_is_too_small_is_so_by_what_is_measured(monkeypatch):
    small = {"mean": 0.004, "low": 0.002, "high": 0.006, "p_value": 0.01}
    tests = {"layer1.2": Comparison.of(small)}
    words = [verdicts._judged("", tests, "", measured)[-1] for measured in ("area", "")]
    assert words == ["too small to matter", "holds"]
    row = {"block": "b", "gig_minus": dict.fromkeys(("gradient", "activation"), small)}
    row["order, logit less probability"] = small
    for high, word in ((0.006, "too small to matter"), (0.5, "not decided")):
        row["gig_minus"]["gradient"] = small | {"high": high}
        monkeypatch.setattr(verdicts.artifacts, "recorded", lambda name: {"rows": [row]})
        assert next(verdicts._readings())[-1] == word, "correlations of 1 to the second digit"


def test_relevance_falls_apart_where_no_interval_reaches_a_likeness(monkeypatch):
    apart = {"likeness of classes": {"apart": {"blind less any": BETTER.__dict__}}}
    again = {"another seed": 0.1, "other photographs": 0.6, "blind": 0.2}
    base = [{"control": "members", "block": "layer1.2"} | apart] + [
        {"control": "stability", "block": "layer1.2", "of": of, "again": share}
        for of, share in again.items()
    ]
    near, far = {"mean": 0.1, "high": 0.2}, {"mean": 0.1, "high": 0.3}
    cases = {"holds": (near, near), "holds of signs": (near, far), "does not hold": (far, near)}
    for word, (signed, absolute) in cases.items():
        shuffled = [{"signed": near, "absolute": near}, {"signed": signed, "absolute": absolute}]
        rows = base + [{"control": "shuffled weights"} | of for of in shuffled]
        monkeypatch.setattr(verdicts.artifacts, "recorded", lambda name, rows=rows: {"rows": rows})
        *_, relevance, atoms = verdicts._controls()
        assert relevance[-1] == word
        assert atoms[-1] == "holds" and "60% at 1.2" in atoms[1] and "10% to 10%" in atoms[1]


def test_families_count_by_all_photographs(monkeypatch):
    rows = [{"block": f"layer{n}.0", "photographs": of, "supported": level, "levels": []}
            for n, levels in ((1, (None, 8)), (2, (8, 16)), (3, (16, None)))
            for of, level in zip((1, 2), levels, strict=True)]  # fmt: skip
    file = {"rows": rows, "settings": {"floor": 0.1}}
    monkeypatch.setattr(verdicts.artifacts, "recorded", lambda name: file)
    ((_, evidence, word),) = verdicts._families()
    assert word == "holds at 1.0, 2.0" and "8 at 1.0, 16 at 2.0; at 2 of 3" in evidence

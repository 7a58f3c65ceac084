"""The verdict page's table: what the paper claims, what ``book/results`` says of it, and a verdict.

Verdicts follow from intervals of paired differences, by rule: nobody writes one down.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, product
from typing import Any

from gig_helpers.data import artifacts
from gig_helpers.data.paper import place
from gig_helpers.report.statistics import Comparison, in_words

APART, AGAIN = 0.25, 0.5
"""A rank correlation below which an order has fallen apart; a share of concepts found again."""

NONE = 0.005
"""A difference of C-μFidelity that counts as none, as chapter 5 has it: at the last block both
correlations are 1 to the second digit."""

Row = tuple[str, str, str]
"""Claim, evidence, verdict."""


def verdict(tests: Mapping[str, Comparison], matters: float = 0.0) -> str:
    """A few words for a claim of "better" that was tested at several places.

    ``matters`` is the smallest effect that counts, named beforehand: where no interval leaves it on
    either side, nothing is said of better or worse.

    Examples
    --------
    >>> better, worse = Comparison(1, 0.5, 2, 0.01), Comparison(-1, -2, -0.5, 0.01)
    >>> open_ = Comparison(0, -1, 1, 0.9)
    >>> verdict({"a": better}), verdict({"a": better, "b": open_}), verdict({"a": open_})
    ('holds', 'holds at a', 'not decided')
    >>> verdict({"a": better, "b": worse}), verdict({"a": worse, "b": open_})
    ('holds at a, the opposite at b', 'does not hold')
    >>> verdict({"a": better, "b": open_}, matters=3.0)
    'too small to matter'
    """
    if all(max(abs(test.low), abs(test.high)) < matters for test in tests.values()):
        return "too small to matter"
    of = {word: _named(tests, word) for word in ("better", "worse", "undecided")}
    if not of["better"]:
        return "does not hold" if of["worse"] else "not decided"
    if not of["worse"] and not of["undecided"]:
        return "holds"
    return f"holds at {of['better']}" + (f", the opposite at {of['worse']}" if of["worse"] else "")


def _named(tests: Mapping[str, Comparison], word: str) -> str:
    """Places of one verdict, or how many they are where a list would be long."""
    places = [name for name, test in tests.items() if test.verdict == word]
    return ", ".join(places) if len(places) <= 3 else f"{len(places)} of {len(tests)}"


def page() -> tuple[str, str]:
    """How many claims hold; a glance by question, claims question by question, all evidence."""
    asked = {question: [row for part in parts for row in part()] for question, parts in ASKED}
    rows = [row for of in asked.values() for row in of]
    glance = ["| Question | Claims |", "|---|---|"]
    sections = list[str]()
    for question, of in asked.items():
        # Equal signs side by side, losses first: what a question comes to is seen at once. A line
        # that is too long for its column breaks between unequal ones.
        signs = groupby(sorted((sign(row) for row in of), key="✕○◐●".index))
        glance.append(f"| {question} | {' '.join(''.join(equal) for _, equal in signs)} |")
        lines = ["| Claim | Verdict |", "|---|---|"]
        lines += [f"| {claim} | {sign((claim, '', word))} {word} |" for claim, _, word in of]
        sections.append(f"## {question}\n\n" + "\n".join(lines))
    lines = ["| Claim | Evidence here | Verdict |", "|---|---|---|"]
    lines += [f"| {claim} | {evidence} | **{word}** |" for claim, evidence, word in rows]
    table = "\n".join(lines)
    evidence = f":::{{dropdown}} All {len(rows)} claims with their evidence, place by place"
    folded = f"## The evidence\n\n{evidence}\n{table}\n:::"
    parts = ["\n".join(glance), "<!-- one by one -->", *sections, folded]
    return summary(rows) + "\n", "\n\n".join(parts) + "\n"


def sign(row: Row) -> str:
    """One sign for a verdict; an objection that holds is a loss of the method.

    Examples
    --------
    >>> [sign(("A", "", word)) for word in ("holds", "holds at a", "not decided", "does not hold")]
    ['●', '◐', '○', '✕']
    >>> sign(("Objection: A", "", "holds")), sign(("Objection: A", "", "does not hold"))
    ('✕', '●')
    """
    claim, _, word = row
    won, lost = "●✕" if not claim.startswith("Objection: ") else "✕●"
    return {"holds": won, "does not hold": lost}.get(word, "◐" if word[:6] == "holds " else "○")


def summary(rows: Sequence[Row]) -> str:
    """How many claims hold, hold somewhere, and do not, which these are, and how many are open.

    Examples
    --------
    >>> print(summary([("A is so", "", "holds"), ("B is", "", "does not hold"), ("C", "", "x")]))
    Of 3 claims 1 holds wherever it was tested, 0 somewhere, 1 not; 1 open. Does not hold:
    <BLANKLINE>
    - B is
    """
    everywhere = sum(word == "holds" for *_, word in rows)
    somewhere = sum(word.startswith("holds ") for *_, word in rows)
    fails = [claim for claim, _, word in rows if word == "does not hold"]
    listed = "\n".join(f"- {claim}" for claim in fails) or "- none"
    hold, were = ("holds", "it was") if everywhere == 1 else ("hold", "they were")
    return (
        f"Of {len(rows)} claims {everywhere} {hold} wherever {were} tested, {somewhere} somewhere, "
        f"{len(fails)} not; {len(rows) - everywhere - somewhere - len(fails)} open. Does not hold:"
        f"\n\n{listed}"
    )


MATTERS = {"area": 0.01, "likeness": 0.01, "correlation": 0.05, "logit": 0.25, "error": 0.005}
"""The smallest effect that counts, by what is measured."""


def _judged(claim: str, tests: Mapping[str, Comparison], where: str, measured: str = "") -> Row:
    short = {name.replace("layer", ""): test for name, test in tests.items()}
    word = verdict(short, MATTERS.get(measured, 0.0))
    return claim, f"{in_words(short)} ({where})", word


def _classes() -> Iterator[Row]:
    run = artifacts.recorded("classes")
    rows = sorted(run["rows"], key=lambda row: place(row["block"]))
    ours = {row["block"]: row for row in rows if row["extractor"] == "bisecting"}
    claims = {
        "random in use": "GIG's order of concepts for a class beats chance (4.2.1)",
        "wrong target": "GIG's order is about this class, not about what is strong in the picture",
        "gradient": "The integral adds to gradient × code, for a class",
    }
    for rival, claim in claims.items():
        tests = {
            b: Comparison.of(row["probability"]["gig_minus"][rival]) for b, row in ours.items()
        }
        where = f"{{numref}}`fig-class-larger`, {run['settings']['evaluated']} held-out photographs"
        yield _judged(claim, tests, where, "area")


def _rivals() -> Iterator[Row]:
    rows = sorted(artifacts.recorded("rivals")["rows"], key=lambda row: place(row["block"]))
    k = rows[0]["k"]
    areas = "agreement", f"insertion less deletion area, {k} concepts each, chapter 5", "area"
    alike = "likeness", "the three most relevant, likeness of classes, chapter 5", "likeness"
    claims = {
        f"{k} families of atoms serve the class better than as many clusters fitted anew": (
            "bisecting", "lasso", *areas
        ),
        "Families serve the class better than PFVs drawn blindly": ("random_pfvs", "lasso", *areas),
        "Families serve the class better than an SAE's own codes (Table 2)": ("sae", "own", *areas),
        "Families serve the class better than an SAE's directions by the Lasso": (
            "sae", "lasso", *areas
        ),
        "Families serve the class better than k-means' clusters": ("kmeans", "lasso", *areas),
        "Families serve the class better than a top-k autoencoder": ("top_k", "own", *areas),
        "Families serve the class better than an archetypal autoencoder": (
            "archetypal", "own", *areas
        ),
        "Families serve the class better than NMF of activations": ("nmf", "own", *areas),
        "Families serve the class better than dictionary learning": (
            "dictionary_learning", "lasso", *areas
        ),
        "Families look more like the class than an SAE's units (Figure 4)": ("sae", "own", *alike),
    }  # fmt: skip
    for claim, (extractor, codes, part, where, measured) in claims.items():
        theirs = (r for r in rows if (r["extractor"], r["codes"]) == (extractor, codes))
        tests = {row["block"]: _turned(row[part]["minus_ours"]) for row in theirs}
        if tests:
            yield _judged(claim, tests, where, measured)


def _early() -> Iterator[Row]:
    run = artifacts.recorded("early")
    where = f"area, {run['settings']['evaluated']} held-out photographs, chapter 5"
    claims = {
        "order by size, |Γ|": "Objection: at the first two blocks an order by the size of "
        "relevances inserts a class sooner than one by their sign",
        "β the mean PFV": "Objection: at the first two blocks concepts around the mean PFV "
        "insert a class sooner than around μ_BN",
        "random order in use": "Objection: at the first two blocks even chance inserts a class "
        "sooner than GIG's order",
    }
    for changed, claim in claims.items():
        rows = (row for row in run["rows"] if row["changed"] == changed)
        tests = {row["block"]: Comparison.of(row["insertion"]["minus_book"]) for row in rows}
        yield _judged(claim, tests, where, "area")


def _readings() -> Iterator[Row]:
    rows = {row["block"]: row for row in artifacts.recorded("readings")["rows"]}
    claims = {
        "gradient": "Relevances forecast what sets of concepts cost, better than gradient × code",
        "activation": "Relevances forecast it better than activation, which knows no class",
    }
    for rival, claim in claims.items():
        tests = {
            block: Comparison.of(row["gig_minus"][rival]).widened(NONE)
            for block, row in rows.items()
        }
        yield _judged(claim, tests, "C-μFidelity, chapter 5", "correlation")
    tests = {b: _turned(row["order, logit less probability"]) for b, row in rows.items()}
    claim = "Relevance for the probability (eq. 7) orders better than for the logit"
    yield _judged(claim, tests, "insertion less deletion area, chapter 5", "area")


def _shared() -> Iterator[Row]:
    rows = artifacts.recorded("shared")["rows"]
    claims = {
        "any in use": "A shared concept matters to both classes: more than any concept in use",
        "the first's own": "A shared concept costs both classes more than one class's own "
        "strongest does",
    }
    for rival, claim in claims.items():
        tests = {row["block"]: Comparison.of(row["shared_minus"][rival]) for row in rows}
        yield _judged(claim, tests, "logit lost by the class that loses less, chapter 7", "logit")


def _pairs() -> Iterator[Row]:
    run = artifacts.recorded("interlayer")
    claims = {
        "random": "GIG's order for a later concept beats random (Figure 5)",
        "random in use": "GIG's order for a later concept beats chance among the concepts in use",
        "wrong target": "An edge is about its own target",
        "gradient": "The integral adds to gradient × code, between blocks",
    }
    for rival, claim in claims.items():
        tests = {
            f"{row['source']} → {row['target']}": Comparison.of(row["gig_minus"][rival])
            for row in run["rows"]
        }
        yield _judged(claim, tests, "{numref}`fig-interlayer-larger`", "area")


def _edges() -> Iterator[Row]:
    rows = [row for row in artifacts.recorded("edges")["rows"] if row["of"] == "families"]
    between = [row for row in rows if row["target"] != "class"]
    claims = {
        "GIG, to the reconstruction": "An edge of this book's graphs (to the network's own map) "
        "forecasts a removal better than the paper's (to the reconstruction)",
        "attribution patching": "An edge of this book's graphs forecasts a removal better than "
        "one gradient",
        "activation × cosine": "An edge of this book's graphs forecasts a removal better than "
        "what is active and alike",
    }
    for rival, claim in claims.items():
        tests = _of_pairs(between, "ranks", rival)
        yield _judged(claim, tests, "families taken out, chapter 6", "correlation")
    for rival in ("the target's relevance", "the source's relevance"):
        claim = f"An edge says what reaches the class along it, better than {rival} alone"
        tests = _of_pairs(between, "patched", rival)
        yield _judged(claim, tests, "path patching, chapter 6", "correlation")


def _transfer() -> Iterator[Row]:
    run = artifacts.recorded("transfer")
    tests = {
        f"{row['source']} → {row['target']}": Comparison.of(
            row["ranks"]["class_minus"]["another class's edges"]
        )
        for row in run["rows"]
    }
    claim = (
        "Edges of a class forecast removals in another of its photographs better than "
        "another class's edges"
    )
    where = f"{{numref}}`fig-interlayer-transfer`, {run['settings']['evaluated']} photographs"
    yield _judged(claim, tests, where, "correlation")


def _of_pairs(rows: Iterable[dict[str, Any]], part: str, rival: str) -> dict[str, Comparison]:
    return {
        f"{row['source']} → {row['target']}": Comparison.of(row[part]["gig_minus"][rival])
        for row in rows
    }


def _circuits() -> Iterator[Row]:
    rows = artifacts.recorded("circuits")["rows"]
    claims = {
        "activation": "The most relevant concepts of all blocks keep more of the class than the "
        "most active",
        "random in use": "The most relevant concepts keep more of the class than any in use",
        "attribution patching": "The most relevant concepts keep more of the class than the "
        "first by one gradient",
        "edges": "The most relevant concepts keep more of the class than those that edges lead to",
    }
    for rival, claim in claims.items():
        tests = {
            f"{row['kept']} a block": Comparison.of(row["minus"][rival])
            for row in rows
            if row["what"] == "faithful"
        }
        yield _judged(claim, tests, "faithfulness of circuits, chapter 7", "correlation")


def _paths() -> Iterator[Row]:
    (row,) = artifacts.recorded("paths")["rows"]
    claims = {
        "control path": "A graph's strongest path costs the class more than one as heavy",
        "another class's path": "A graph's strongest path costs the class more than the "
        "path of another class",
        "no edges": "A graph's strongest path costs the class more than what is most "
        "relevant, without edges",
    }
    for rival, claim in claims.items():
        tests = {"the chain": Comparison.of(row["path_minus"][rival])}
        yield _judged(claim, tests, "logit lost without the path, chapter 7", "logit")


def _shortcut() -> Iterator[Row]:
    run = artifacts.recorded("shortcut")
    claims = {
        "random": "Three concepts that mislead, taken out, undo a shortcut more than any three",
        "activation": "Three concepts that mislead undo a shortcut more than the three most active",
        "nine tenths of the clean": "Three concepts that mislead, taken out, bring back "
        "nine tenths of the clean answers",
        "clean, within the margin": "Clean photographs lose less than 3 points by the cure "
        "of a shortcut",
    }
    for rival, claim in claims.items():
        tests = {row["block"]: Comparison.of(row["minus"][rival]) for row in run["rows"]}
        where = f"a watermark, chapter 10, {run['settings']['evaluated']} held-out photographs"
        yield _judged(claim, tests, where)


def _carried() -> Iterator[Row]:
    run, other = artifacts.recorded("watermarks"), artifacts.recorded("other_shortcut")
    learnt, *others = run["rows"]
    where = f"chapter 10, {run['settings']['evaluated']} held-out photographs"
    cured = {row["mark"]: Comparison.of(row["minus"]["suspects, 3"]) for row in others}
    yield _judged("What undoes one watermark undoes others", cured, where)
    pairs = {row["mark"]: Comparison.of(row["minus"]["pairs"]) for row in run["rows"]}
    yield _judged(
        "Three suspects undo watermarks more than a direction that is told of them", pairs, where
    )
    pulled = {
        name: Comparison.of(of["probability"]["before_minus_after"])
        for name, of in learnt["classes"].items()
    }
    yield _judged(
        "The cure lowers the probability of every class that the watermark pulls to", pulled, where
    )
    latents = [row for row in artifacts.recorded("latents")["rows"] if row["extractor"] == "sae"]
    units = {f"{r['k']} latents": Comparison.of(r["ours_minus"]["suspects, 3"]) for r in latents}
    yield _judged("Three suspects undo more than as many units of an SAE", units, where)
    claims = {
        "random": "In another network, too, three suspects bring back more than any three concepts",
        "clean, within the margin": "In another network, too, clean photographs lose less "
        "than 3 points by the cure",
    }
    for rival, claim in claims.items():
        tests = {row["block"]: Comparison.of(row["minus"][rival]) for row in other["rows"]}
        yield _judged(claim, tests, f"{other['settings']['network']}, {where}")


def _planted() -> Iterator[Row]:
    run = artifacts.recorded("planted")
    sides = {
        flag: {
            f"{row['network']} {row['block'].split('_')[-1]}": row
            for row in run["rows"]
            if row["planted"] is flag
        }
        for flag in (True, False)
    }
    where = f"chapter 10, {run['settings']['evaluated']} held-out digits"
    claims = {
        "random": "A planted shortcut is undone by three suspects more than by any three concepts",
        "activation": "A planted shortcut is undone by three suspects more than by the "
        "three most active",
        "nine tenths of the clean": "Nine tenths of what is right without a planted "
        "shortcut come back",
    }
    for rival, claim in claims.items():
        tests = {name: Comparison.of(row["minus"][rival]) for name, row in sides[True].items()}
        yield _judged(claim, tests, where)
    tests = {name: Comparison.of(row["mass_minus_area"]) for name, row in sides[True].items()}
    yield _judged("The first suspect lies on what was planted", tests, where)
    tests = {name: _turned(row["mass_minus_area"]) for name, row in sides[False].items()}
    claim = "Where nothing was planted, the first suspect keeps off the place"
    yield _judged(claim, tests, where)


def _extractors() -> Iterator[Row]:
    run = artifacts.recorded("concepts")
    rows = sorted(run["rows"], key=lambda row: place(row["block"]))
    claims = {
        ("sae", "own_codes"): "Our concepts reconstruct better than an SAE's own codes (Table 1)",
        ("sae", "left_out"): "Our directions are better than an SAE's, both by the Lasso",
        (
            "dictionary_learning",
            "left_out",
        ): "Our directions are better than those of dictionary learning",
        ("kmeans", "left_out"): "Our directions are better than those of k-means",
        ("random_pfvs", "left_out"): "Our directions are better than PFVs drawn blindly",
    }
    for at_level, ((name, part), claim) in product((False, True), claims.items()):
        tests = {
            row["block"]: Comparison.of(row["methods"][name][part]["minus_ours"])
            for row in rows
            if part in row["methods"].get(name, {}) and row["at_level"] == at_level
        }
        many = "as many as families" if at_level else "8 a channel"
        if tests:
            where = f"{many}, {{numref}}`fig-decomposition-larger`"
            yield _judged(f"{claim}: {many}", tests, where, "error")


def _fewer() -> Iterator[Row]:
    rows = sorted(artifacts.recorded("fewer")["rows"], key=lambda row: -row["photographs"])
    fewest = {row["block"]: row for row in rows}
    tests = {block: Comparison.of(row["error"]["minus_all"]) for block, row in fewest.items()}
    numbers = sorted({row["photographs"] for row in rows})
    where = f"{numbers[0]:,} against {numbers[-1]:,} photographs, 8 a channel, chapter 3"
    yield _judged("Fewer photographs reconstruct others worse", tests, where, "error")
    areas = {b: _turned(row["agreement"]["minus_ours"]) for b, row in fewest.items()}
    where = where.replace("8 a channel", "insertion less deletion area, 8 a channel")
    yield _judged("Concepts of fewer photographs serve a class worse", areas, where, "area")


def _sampling() -> Iterator[Row]:
    rows = {row["block"]: row for row in artifacts.recorded("sampling")["rows"]}
    claims = {
        "gain": "PFVs drawn by contribution make concepts that serve a class better (3.1)",
        "missed of PFVs drawn by contribution": "PFVs drawn by contribution make concepts "
        "that describe what contributes better",
    }
    for what, claim in claims.items():
        # A gain is better where it is larger, an error where it is smaller.
        ours = _turned if what == "gain" else lambda test: Comparison.of(test)
        tests = {block: ours(row[what]["minus_ours"]) for block, row in rows.items()}
        measured = "area" if what == "gain" else "error"
        yield _judged(claim, tests, "against uniform draws, chapter 8", measured)


def _controls() -> Iterator[Row]:
    rows = artifacts.recorded("controls")["rows"]
    members = {row["block"]: row for row in rows if row["control"] == "members"}
    likeness = {block: row["likeness of classes"]["apart"] for block, row in members.items()}
    tests = {block: Comparison.of(apart["blind less any"]) for block, apart in likeness.items()}
    claim = "A concept is more than its card: its other PFVs are of classes alike too"
    yield _judged(claim, tests, "held out, chapter 8", "likeness")
    shuffled = [row for row in rows if row["control"] == "shuffled weights"]
    signed, sizes = (
        f"{min(means):.2f} to {max(means):.2f}"
        for means in ([row[of]["mean"] for row in shuffled] for of in ("signed", "absolute"))
    )
    apart = [
        of for of in ("signed", "absolute") if all(row[of]["high"] < APART for row in shuffled)
    ]
    yield (
        "Relevance describes the network: its order falls apart with the weights, signs and sizes",
        f"rank correlation with the true one {signed} once weights above are shuffled, of sizes "
        f"without sign {sizes} ({{numref}}`fig-scale-shuffled`)",
        "holds"
        if len(apart) == 2
        else "holds of signs"
        if apart == ["signed"]
        else "does not hold",
    )
    again: dict[str, list[float]] = {}
    by_block = dict[str, float]()
    for row in rows:
        if row["control"] == "stability":
            again.setdefault(row["of"], []).append(row["again"])
            if row["of"] == "other photographs":
                by_block[row["block"].replace("layer", "")] = row["again"]
    seed, _, blind = again.values()
    listed = ", ".join(f"{share:.0%} at {block}" for block, share in by_block.items())
    yield (
        "Atoms, 8 per channel, are the data set's: other photographs give them again",
        f"found again (cosine above 0.9) with other photographs: {listed}; with another seed "
        f"{min(seed):.0%} to {max(seed):.0%}, among PFVs drawn blindly {min(blind):.0%} to "
        f"{max(blind):.0%} (chapter 8)",
        _found_at(by_block),
    )


def _families() -> Iterator[Row]:
    run = artifacts.recorded("families")
    # The last row of a block is that of all photographs.
    whole = {row["block"].replace("layer", ""): row for row in run["rows"] if "levels" in row}
    some = {block: row["supported"] for block, row in whole.items() if row["supported"]}
    listed = ", ".join(f"{level} at {block}" for block, level in some.items())
    yield (
        "Families are the data set's: other photographs give them again",
        "the largest number whose agreement, with 95 % confidence, is more than "
        f"{run['settings']['floor']} above that of blind draws: {listed or 'none'}; at {len(some)} "
        f"of {len(whole)} blocks there is one ({{numref}}`fig-concepts-agreement`)",
        _at_most(some, whole),
    )


def _found_at(shares: Mapping[str, float]) -> str:
    """Where more than half are found again, if that is at most blocks."""
    return _at_most([block for block, share in shares.items() if share > AGAIN], shares)


def _at_most(some: Collection[str], every: Collection[str]) -> str:
    """What holds at most places holds; at fewer it does not, whatever it does at one.

    Examples
    --------
    >>> _at_most(["1.2", "2.3"], ["1.2", "2.3", "3.0"]), _at_most(["1.2"], ["1.2", "2.3"])
    ('holds at 1.2, 2.3', 'does not hold')
    """
    if len(some) == len(every):
        return "holds"
    return f"holds at {', '.join(some)}" if 2 * len(some) > len(every) else "does not hold"


def _turned(minus: Mapping[str, float]) -> Comparison:
    """Ours less theirs, of theirs less ours."""
    found = Comparison.of(minus)
    return Comparison(-found.mean, -found.high, -found.low, found.p_value)


ASKED = (
    ("Do relevances say what a class needs? (chapter 5)", (_classes, _early, _readings)),
    ("Are edges between blocks true? (chapter 6)", (_pairs, _edges, _transfer)),
    ("Do paths and circuits carry the class? (chapter 7)", (_paths, _circuits, _shared)),
    ("Can a shortcut be found and cut? (chapter 10)", (_shortcut, _carried, _planted)),
    (
        "Are the concepts better than others? (chapters 3, 5 and 8)",
        (_rivals, _extractors, _fewer, _sampling),
    ),
    ("Is a concept more than one clustering's? (chapter 8)", (_controls, _families)),
)
"""Questions of the page, and what answers each."""

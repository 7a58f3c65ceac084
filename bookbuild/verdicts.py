"""The verdict page's table: what the paper claims, what ``book/results`` says of it, and a verdict.

Verdicts follow from intervals of paired differences, by rule: nobody writes one down.
"""

from collections.abc import Iterator, Mapping

from gig_helpers.data import artifacts
from gig_helpers.data.paper import place
from gig_helpers.report.statistics import Comparison, in_words

APART, AGAIN = 0.25, 0.5
"""A rank correlation below which an order has fallen apart; a share of concepts found again."""

Row = tuple[str, str, str]
"""Claim, evidence, verdict."""


def verdict(tests: Mapping[str, Comparison]) -> str:
    """One word for a claim of "better" that was tested at several places.

    Examples
    --------
    >>> better, worse = Comparison(1, 0.5, 2, 0.01), Comparison(-1, -2, -0.5, 0.01)
    >>> open_ = Comparison(0, -1, 1, 0.9)
    >>> verdict({"a": better}), verdict({"a": better, "b": open_}), verdict({"a": open_})
    ('holds', 'holds in part', 'not decided')
    >>> verdict({"a": better, "b": worse}), verdict({"a": worse, "b": open_})
    ('mixed', 'does not hold')
    """
    verdicts = {test.verdict for test in tests.values()}
    if verdicts == {"better"}:
        return "holds"
    if "better" in verdicts:
        return "mixed" if "worse" in verdicts else "holds in part"
    return "does not hold" if "worse" in verdicts else "not decided"


def table() -> str:
    """All claims as a Markdown table."""
    parts = (
        _classes, _readings, _pairs, _paths, _shared, _shortcut, _carried, _planted,
        _extractors, _sampling, _controls, _families,
    )  # fmt: skip
    rows = [row for part in parts for row in part()]
    lines = ["| Claim | Evidence here | Verdict |", "|---|---|---|"]
    lines += [f"| {claim} | {evidence} | **{word}** |" for claim, evidence, word in rows]
    return "\n".join(lines) + "\n"


def _judged(claim: str, tests: Mapping[str, Comparison], where: str) -> Row:
    short = {name.replace("layer", ""): test for name, test in tests.items()}
    return claim, f"{in_words(short)} ({where})", verdict(tests)


def _classes() -> Iterator[Row]:
    run = artifacts.recorded("classes")
    rows = sorted(run["rows"], key=lambda row: place(row["block"]))
    ours = {row["block"]: row for row in rows if row["extractor"] == "bisecting"}
    claims = {
        "random in use": "GIG's order of concepts for a class beats chance (4.2.1)",
        "wrong target": "It is about this class, not about what is strong in the picture",
        "gradient": "The integral adds to gradient × code, for a class",
    }
    for rival, claim in claims.items():
        tests = {b: Comparison(**row["probability"]["gig_minus"][rival]) for b, row in ours.items()}
        where = f"{{numref}}`fig-class-larger`, {run['settings']['evaluated']} held-out photographs"
        yield _judged(claim, tests, where)
    areas = "agreement", "insertion less deletion area, agreement, chapter 5"
    alike = "likeness", "the three most relevant, likeness of classes, chapter 5"
    claims_of_sae = {
        "Its concepts serve the class better than an SAE's (Table 2)": ("own", *areas),
        "They do so with codes by the Lasso for both": ("lasso", *areas),
        "Its concepts look more like the class than an SAE's (Figure 4)": ("own", *alike),
    }
    for claim, (codes, part, where) in claims_of_sae.items():
        sae = (r for r in rows if r["extractor"] == "sae_short" and r["codes"] == codes)
        tests = {row["block"]: _turned(row[part]["minus_ours"]) for row in sae}
        yield _judged(claim, tests, where)


def _readings() -> Iterator[Row]:
    rows = {row["block"]: row for row in artifacts.recorded("readings")["rows"]}
    claims = {
        "gradient": "Relevances forecast what sets of concepts cost, better than gradient × code",
        "activation": "They do so better than activation, which knows no class",
    }
    for rival, claim in claims.items():
        tests = {block: Comparison(**row["gig_minus"][rival]) for block, row in rows.items()}
        yield _judged(claim, tests, "C-μFidelity, chapter 5")
    tests = {b: _turned(row["order, logit less probability"]) for b, row in rows.items()}
    claim = "Relevance for the probability (eq. 7) orders better than for the logit"
    yield _judged(claim, tests, "insertion less deletion area, chapter 5")


def _shared() -> Iterator[Row]:
    rows = artifacts.recorded("shared")["rows"]
    claims = {
        "any in use": "A shared concept matters to both classes: more than any concept in use",
        "the first's own": "It costs both more than one class's own strongest costs both",
    }
    for rival, claim in claims.items():
        tests = {row["block"]: Comparison(**row["shared_minus"][rival]) for row in rows}
        yield _judged(claim, tests, "logit lost by the class that loses less, chapter 7")


def _pairs() -> Iterator[Row]:
    run = artifacts.recorded("interlayer")
    claims = {
        "random": "GIG's order for a later concept beats random (Figure 5)",
        "random in use": "It beats chance among the concepts in use",
        "wrong target": "An edge is about its own target",
        "gradient": "The integral adds to gradient × code, between blocks",
    }
    for rival, claim in claims.items():
        tests = {
            f"{row['source']} → {row['target']}": Comparison(**row["gig_minus"][rival])
            for row in run["rows"]
        }
        yield _judged(claim, tests, "{numref}`fig-interlayer-larger`")


def _paths() -> Iterator[Row]:
    (row,) = artifacts.recorded("paths")["rows"]
    claims = {
        "control path": "A graph's strongest path carries the class by its edges, not by its end",
        "another class's path": "Its edges are this class's, not those of what is strong",
    }
    for rival, claim in claims.items():
        tests = {"the chain": Comparison(**row["path_minus"][rival])}
        yield _judged(claim, tests, "logit lost without the path, chapter 7")


def _shortcut() -> Iterator[Row]:
    run = artifacts.recorded("shortcut")
    claims = {
        "random": "Three concepts that mislead, taken out, undo a shortcut more than any three",
        "activation": "They undo it more than the three most active",
        "nine tenths of the clean": "They bring back nine tenths of what is right without it",
        "clean, within the margin": "Clean photographs lose less than 3 points by it",
    }
    for rival, claim in claims.items():
        tests = {row["block"]: Comparison(**row["minus"][rival]) for row in run["rows"]}
        where = f"a watermark, chapter 10, {run['settings']['evaluated']} held-out photographs"
        yield _judged(claim, tests, where)


def _carried() -> Iterator[Row]:
    run, other = artifacts.recorded("watermarks"), artifacts.recorded("other_shortcut")
    learnt, *others = run["rows"]
    where = f"chapter 10, {run['settings']['evaluated']} held-out photographs"
    cured = {row["mark"]: Comparison(**row["minus"]["suspects, 3"]) for row in others}
    yield _judged("What undoes one watermark undoes others", cured, where)
    pairs = {row["mark"]: Comparison(**row["minus"]["pairs"]) for row in run["rows"]}
    yield _judged("It undoes them more than a direction that is told of them", pairs, where)
    pulled = {
        name: Comparison(**of["probability"]["before_minus_after"])
        for name, of in learnt["classes"].items()
    }
    yield _judged("It takes from every class what the watermark brings", pulled, where)
    latents = [row for row in artifacts.recorded("latents")["rows"] if row["extractor"] == "sae"]
    units = {f"{r['k']} latents": Comparison(**r["ours_minus"]["suspects, 3"]) for r in latents}
    yield _judged("It undoes more than as many units of an SAE", units, where)
    claims = {
        "random": "In another network too it brings back more than any three concepts taken out",
        "clean, within the margin": "There too clean photographs lose less than 3 points by it",
    }
    for rival, claim in claims.items():
        tests = {row["block"]: Comparison(**row["minus"][rival]) for row in other["rows"]}
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
        "activation": "It is, more than by the three most active",
        "nine tenths of the clean": "Nine tenths of what is right without it come back",
    }
    for rival, claim in claims.items():
        tests = {name: Comparison(**row["minus"][rival]) for name, row in sides[True].items()}
        yield _judged(claim, tests, where)
    tests = {name: Comparison(**row["mass_minus_area"]) for name, row in sides[True].items()}
    yield _judged("The first suspect lies on what was planted", tests, where)
    tests = {name: _turned(row["mass_minus_area"]) for name, row in sides[False].items()}
    claim = "Where nothing was planted, the first suspect keeps off the place"
    yield _judged(claim, tests, where)


def _extractors() -> Iterator[Row]:
    run = artifacts.recorded("concepts")
    rows = sorted(run["rows"], key=lambda row: place(row["block"]))
    claims = {
        ("sae_short", "own_codes"): "It reconstructs better than an SAE's own codes (Table 1)",
        ("sae_short", "pursuit"): "Its directions are better than an SAE's, like for like",
        ("kmeans", "pursuit"): "They are better than those of k-means, like for like",
        ("random_pfvs", "pursuit"): "They are better than PFVs drawn blindly, like for like",
    }
    for (name, part), claim in claims.items():
        tests = {
            row["block"]: Comparison(**row["methods"][name][part]["minus_ours"])
            for row in rows
            if part in row["methods"].get(name, {})
        }
        if tests:
            yield _judged(claim, tests, "{numref}`fig-decomposition-larger`")


def _sampling() -> Iterator[Row]:
    rows = {row["block"]: row for row in artifacts.recorded("sampling")["rows"]}
    claims = {
        "gain": "PFVs drawn by contribution make concepts that serve a class better (3.1)",
        "missed of PFVs drawn by contribution": "They describe what contributes better",
    }
    for what, claim in claims.items():
        # A gain is better where it is larger, an error where it is smaller.
        ours = _turned if what == "gain" else lambda test: Comparison(**test)
        tests = {block: ours(row[what]["minus_ours"]) for block, row in rows.items()}
        yield _judged(claim, tests, "against uniform draws, chapter 8")


def _controls() -> Iterator[Row]:
    rows = artifacts.recorded("controls")["rows"]
    members = {row["block"]: row for row in rows if row["control"] == "members"}
    likeness = {block: row["likeness of classes"]["apart"] for block, row in members.items()}
    tests = {block: Comparison(**apart["blind less any"]) for block, apart in likeness.items()}
    claim = "A concept is more than its card: its other PFVs are of classes alike too"
    yield _judged(claim, tests, "held out, chapter 2; each block's own interval")
    shuffled = [row for row in rows if row["control"] == "shuffled weights"]
    kept = {f"{row['block']} {row['down to']}": row["signed"] for row in shuffled}
    signed, sizes = (
        f"{min(means):.2f} to {max(means):.2f}"
        for means in ([row[of]["mean"] for row in shuffled] for of in ("signed", "absolute"))
    )
    apart = [name for name, c in kept.items() if c["high"] < APART]
    yield (
        "Relevance describes the network: its signed order falls apart with the weights",
        f"rank correlation with the true one {signed} once weights above are shuffled, of sizes "
        f"without sign {sizes} ({{numref}}`fig-scale-shuffled`)",
        "holds" if len(apart) == len(kept) else "holds in part" if apart else "does not hold",
    )
    again: dict[str, list[float]] = {}
    by_block = dict[str, float]()
    for row in rows:
        if row["control"] == "stability":
            again.setdefault(row["of"], []).append(row["again"])
            if row["of"] == "other photographs":
                by_block[row["block"].replace("layer", "")] = row["again"]
    seed, other, blind = again.values()
    listed = ", ".join(f"{share:.0%} at {block}" for block, share in by_block.items())
    yield (
        "Atoms, 8 per channel, are the data set's: other photographs give them again",
        f"found again (cosine above 0.9) with other photographs: {listed}; with another seed "
        f"{min(seed):.0%} to {max(seed):.0%}, among PFVs drawn blindly {min(blind):.0%} to "
        f"{max(blind):.0%} (chapter 8)",
        "holds"
        if min(other) > AGAIN
        else "holds in part"
        if max(other) > AGAIN
        else "does not hold",
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
        "holds" if len(some) == len(whole) else "holds in part" if some else "does not hold",
    )


def _turned(minus: Mapping[str, float]) -> Comparison:
    """Ours less theirs, of theirs less ours."""
    return Comparison(-minus["mean"], -minus["high"], -minus["low"], minus["p_value"])

"""Interlayer deletion and insertion at the pairs of the paper's Figure 5 (chapter 6)."""

from itertools import pairwise
from typing import Any

from gig_helpers import METHODS, decompose
from gig_helpers.data.paper import PAPER
from gig_helpers.report.studies import WRONG_TARGET, present_targets, study

from .run import TIMED_PICTURES, Run, seconds_per_picture, summary, write


def make(run: Run) -> None:
    """Write ``interlayer.json``: every order that costs little, and the one of a wrong target."""
    profile, rows = run.profile, list[dict[str, Any]]()
    images, labels = run.evaluated(PAPER["interlayer_pictures"])
    methods = [name for name, method in METHODS.items() if not method.per_concept] + [WRONG_TARGET]
    pairs = [*pairwise(run.chain)]
    for a, b in reversed(pairs):
        source, later = run.concepts(a), run.concepts(b)
        d = decompose(run.network, images, {a: source, b: later})
        targets = present_targets(d, a, b, labels, profile)
        made = study(d, a, (b, targets), methods, profile)
        # A picture's targets are not independent: their mean is one observation.
        curves = {name: scores["projection"].mean(dim=1) for name, scores in made.curves.items()}
        row = {
            "source": a, "target": b, "k": [len(source), len(later)],
            "lambda": [source.lam, later.lam], "gap": float(made.gaps["gig"].max()),
            "seconds_per_picture": seconds_per_picture(run, source, later),
            **summary(curves, len(pairs)),
        }  # fmt: skip
        rows.insert(0, row)
        write(
            run, "interlayer", rows, evaluated=len(images), held_out=True, timed=TIMED_PICTURES,
            targets=profile.evaluation_targets, gap=profile.gap, bracket=profile.bracket,
            seed=profile.seed,
        )  # fmt: skip

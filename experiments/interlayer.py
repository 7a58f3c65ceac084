"""Interlayer deletion and insertion at the pairs of the paper's Figure 5 (chapter 6)."""

from itertools import pairwise
from typing import Any

from torch import Tensor

from gig_helpers import Concepts
from gig_helpers.codes import load_codes
from gig_helpers.curves import interlayer_curves
from gig_helpers.data.paper import PAPER
from gig_helpers.data.profiles import CHAIN
from gig_helpers.importance import METHODS, interlayer_importance
from gig_helpers.report.studies import WRONG_TARGET, interlayer_study

from .run import TIMED_PICTURES, Run, nothing_kept, summary, timed, write


def make(run: Run) -> None:
    """Write ``interlayer.json``: every order that costs little, and the one of a wrong target."""
    profile, rows = run.profile, list[dict[str, Any]]()
    images, labels = run.evaluated(PAPER["interlayer_pictures"])
    methods = [name for name, method in METHODS.items() if method.affordable] + [WRONG_TARGET]
    pairs = [pair for pair in pairwise(CHAIN) if set(pair) <= set(profile.blocks)]
    for a, b in pairs[::-1]:
        source, target = run.concepts(a), run.concepts(b)
        study = interlayer_study(run.network, images, labels, source, target, methods, profile)
        # A picture's targets are not independent: their mean is one observation.
        curves = {method: found.mean(dim=1) for method, found in study.curves.items()}
        few = images[:TIMED_PICTURES], labels[:TIMED_PICTURES]
        with nothing_kept():
            spent = seconds(run, *few, source, target)
        row = {
            "source": a,
            "target": b,
            "k": [len(source), len(target)],
            "lambda": [source.lam, target.lam],
            "seconds_per_picture": {step: t / TIMED_PICTURES for step, t in spent.items()},
            "gap": float(study.gaps["gig"].max()),
            **summary(curves, len(pairs)),
        }
        rows.insert(0, row)
        write(
            run, "interlayer", rows, evaluated=len(images), held_out=True, timed=TIMED_PICTURES,
            targets=profile.evaluation_targets, gap=profile.gap, bracket=profile.bracket,
            seed=profile.seed,
        )  # fmt: skip


def seconds(
    run: Run, images: Tensor, labels: list[int], source: Concepts, target: Concepts
) -> dict[str, float]:
    """Seconds of GIG's steps for these pictures: codes, targets, importance, curves."""
    spent: dict[str, float] = {}
    options: dict[str, Any] = {"batch_size": run.profile.batch_size}
    for image, label in zip(images[:, None], labels, strict=True):
        with timed(spent, "codes"):
            u = load_codes(run.network, image, source)
            load_codes(run.network, image, target)
        with timed(spent, "targets"):  # a study without methods chooses them, and no more
            study = interlayer_study(run.network, image, [label], source, target, [], run.profile)
        assert study.targets is not None
        vectors = target.vectors[study.targets[0].to(target.vectors.device)]
        given = run.network, u, source, target.block, vectors
        with timed(spent, "gig"):
            found = interlayer_importance("gig", *given, tolerance=run.profile.gap, **options)
        with timed(spent, "curves"):
            interlayer_curves(*given, found, tolerance=run.profile.bracket, **options)
    return spent

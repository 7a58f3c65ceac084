"""Interlayer deletion and insertion at every pair of neighbours (chapter 6)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from gig_helpers import Concepts
from gig_helpers.codes import load_codes
from gig_helpers.curves import interlayer_curves
from gig_helpers.importance import METHODS, interlayer_importance
from gig_helpers.report.studies import interlayer_study

from .run import TIMED_PICTURES, Run, nothing_kept, summary, timed, write


def make(run: Run) -> None:
    """Write ``interlayer.json``: the affordable methods, and the cosine of concepts alone."""
    profile, rows = run.profile, list[dict[str, Any]]()
    images, labels = run.evaluated
    methods = [name for name, method in METHODS.items() if method.affordable or name == "cosine"]
    for a, b in list(pairwise(run.concepts))[::-1]:
        source, target = run.concepts[a], run.concepts[b]
        study = interlayer_study(run.network, images, labels, source, target, methods, profile)
        # A picture's targets are not independent: their mean is one observation.
        curves = {method: found.mean(dim=1) for method, found in study.curves.items()}
        few = images[:TIMED_PICTURES], labels[:TIMED_PICTURES]
        with nothing_kept():
            spent = seconds(run, *few, source, target, methods)
        row = {
            "source": a,
            "target": b,
            "k": [len(source), len(target)],
            "lambda": [source.lam, target.lam],
            "seconds_per_picture": {step: t / len(few[0]) for step, t in spent.items()},
            "gap": float(study.gaps["gig"].max()),
            **summary(curves),
        }
        rows.insert(0, row)
        write(
            run, "interlayer", rows, evaluated=len(images), timed=len(few[0]),
            targets=profile.evaluation_targets, gap=profile.gap, bracket=profile.bracket,
            seed=profile.seed,
        )  # fmt: skip


def seconds(
    run: Run,
    images: Tensor,
    labels: Sequence[int],
    source: Concepts,
    target: Concepts,
    methods: Sequence[str],
) -> dict[str, float]:
    """Seconds of each step for these pictures (N, 3, H, W): codes, targets, importance, curves."""
    spent: dict[str, float] = {}
    size = run.profile.batch_size
    for image, label in zip(images[:, None], labels, strict=True):
        with timed(spent, "codes"):
            u = load_codes(run.network, image, source)
            load_codes(run.network, image, target)
        with timed(spent, "targets"):  # a study without methods chooses them, and no more
            study = interlayer_study(run.network, image, [label], source, target, [], run.profile)
        assert study.targets is not None
        vectors = target.vectors[study.targets[0].to(target.vectors.device)]
        given = run.network, u, source, target.block
        for method in methods:
            with timed(spent, method):
                importance = interlayer_importance(
                    method, *given, vectors, tolerance=run.profile.gap, batch_size=size
                )
            with timed(spent, f"curves of {method}"):
                interlayer_curves(
                    *given, vectors, importance, tolerance=run.profile.bracket, batch_size=size
                )
    return spent

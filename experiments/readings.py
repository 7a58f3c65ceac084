"""The paper's reading beside ours: relevance for the probability (eq. 7), and C-μFidelity."""

from typing import Any

import torch

from gig_helpers import attribute, decompose, deletion_insertion
from gig_helpers.report.fidelity import class_fidelity

from .run import Run, means, minus, minus_others, open_area, write

PICTURES, SUBSETS = 25, 100
"""Photographs, every second one of the class study's; random sets of concepts of each."""

READINGS = {
    "gig": ("gig", "logit"),
    "gig, probability": ("gig", "probability"),
    "gradient": ("gradient", "logit"),
    "activation": ("activation", "logit"),
    "random": ("random", "logit"),
}
"""Orders by name: a method, and of what the path's target is made."""


def make(run: Run) -> None:
    """Write ``readings.json``."""
    rows: list[dict[str, Any]] = []
    for block in reversed(run.chain):
        rows.insert(0, {"block": block} | _row(run, block))
        write(
            run, "readings", rows, evaluated=len(run.evaluated(PICTURES)[1]), held_out=True,
            subsets=SUBSETS, gap=run.profile.gap, bracket=run.profile.bracket,
        )  # fmt: skip


def _row(run: Run, block: str) -> dict[str, Any]:
    profile, places = run.profile, len(run.chain)
    images, labels = run.evaluated(PICTURES)
    d = decompose(run.network, images, {block: run.concepts(block)})
    classes = [[label] for label in labels]
    options: dict[str, Any] = {"batch_size": profile.batch_size, "tolerance": profile.gap}
    importance = torch.cat(
        [
            attribute(d, block, classes, method=method, output=output, **options)
            for method, output in READINGS.values()
        ],
        dim=1,
    )
    fidelity = class_fidelity(d, block, labels, importance, subsets=SUBSETS)
    # Undefined where nothing varies: no set of concepts that changes the logit, or no attribution.
    arms = dict(zip(READINGS, fidelity.nan_to_num(0.0).T, strict=True))
    both = importance[:, :2, None]
    curves = deletion_insertion(d, block, classes, both, tolerance=profile.bracket)["probability"]
    by_logit, by_probability = curves.gain()[:, :, 0].T
    open_ = 2 * open_area(curves)  # of two orders
    return {
        "k": len(d.concepts[block]),
        "fidelity": means(arms),
        "gig_minus": minus_others(arms, "gig", places),
        "order, logit less probability": minus(by_logit, by_probability, places, open_),
    }

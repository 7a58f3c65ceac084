"""The paper's reading beside ours: relevance for the probability (eq. 7), and C-μFidelity."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gig_helpers import Concepts
from gig_helpers.codes import load_codes
from gig_helpers.curves import class_curves
from gig_helpers.data.profiles import CHAIN
from gig_helpers.importance import class_importance
from gig_helpers.report.fidelity import class_fidelity
from gig_helpers.report.statistics import compare, interval

from .run import Run, together, write

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
    blocks = [block for block in CHAIN if block in run.profile.blocks]
    for block in reversed(blocks):
        rows.insert(0, {"block": block} | _row(run, run.concepts(block), len(blocks)))
        write(
            run, "readings", rows, evaluated=len(run.evaluated(PICTURES)[1]), held_out=True,
            subsets=SUBSETS, gap=run.profile.gap, bracket=run.profile.bracket,
        )  # fmt: skip


def _row(run: Run, concepts: Concepts, places: int) -> dict[str, Any]:
    network, profile = run.network, run.profile
    options: dict[str, Any] = {"tolerance": profile.gap, "batch_size": profile.batch_size}
    fidelity, gains = list[Tensor](), list[Tensor]()
    for image, label in zip(*run.evaluated(PICTURES), strict=True):
        given = network, load_codes(network, image[None], concepts), concepts
        importance = torch.cat(
            [
                class_importance(method, *given, [label], output=output, **options)
                for method, output in READINGS.values()
            ],
            dim=1,
        )
        fidelity.append(class_fidelity(*given, importance, [label], subsets=SUBSETS))
        both = importance[:, :2], [label]
        found = class_curves(*given, *both, tolerance=profile.bracket)["probability"]
        gains.append(found.gain())
    scores, lead = torch.cat(fidelity), torch.cat(gains)
    # Undefined where nothing varies: no set of concepts that changes the logit, or no attribution.
    scores = scores.nan_to_num(0.0)
    return {
        "k": len(concepts),
        "fidelity": {n: asdict(interval(s)) for n, s in zip(READINGS, scores.T, strict=True)},
        "gig_minus": {
            name: asdict(compare(scores[:, 0], scores[:, n], together(places)))
            for n, name in enumerate(READINGS)
            if n
        },
        "order, logit less probability": asdict(compare(lead[:, 0], lead[:, 1], together(places))),
    }

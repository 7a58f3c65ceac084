"""C-deletion and C-insertion at every block (chapter 5)."""

from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from gig_helpers import Concepts
from gig_helpers.codes import load_codes
from gig_helpers.curves import class_curves
from gig_helpers.data.paper import PAPER
from gig_helpers.importance import class_importance
from gig_helpers.report.examples import likeness
from gig_helpers.report.statistics import compare, interval
from gig_helpers.report.studies import WRONG_TARGET, class_study

from .run import TIMED_PICTURES, Run, nothing_kept, summary, timed, together, write

ORDERS = ["gig", "gradient", "random in use", WRONG_TARGET]
"""Orders of our concepts; the blinder ones wait for chapter 6, where the paper has them."""

OWN_CODES = ", own codes"
"""After an extractor's name: with its encoder's codes in place of the Lasso's."""

RIVALS = ("SAE, 5 epochs", "SAE, 5 epochs" + OWN_CODES)
"""Extractors whose concepts are judged beside ours, by GIG's order alone, as in Table 2.

At the blocks of Table 1, for which they are there.
"""


def make(run: Run) -> None:
    """Write ``classes.json``: our concepts by every order, then the rivals' by GIG's."""
    rows: list[dict[str, Any]] = []
    ours: dict[tuple[str, str], Tensor] = {}
    for extractor in ("bisecting", *RIVALS):
        for block in reversed(run.profile.blocks):
            made_by = extractor.removesuffix(OWN_CODES)
            ours_alone = block not in PAPER["table_1"] or not run.affordable(block, made_by)
            if extractor in RIVALS and ours_alone:
                continue
            orders = ORDERS if extractor == "bisecting" else ORDERS[:1]
            rows.append(_row(run, block, extractor, orders, ours))
            write(
                run, "classes", rows, evaluated=len(run.evaluated()[1]), held_out=True,
                timed=TIMED_PICTURES, gap=run.profile.gap, bracket=run.profile.bracket,
                seed=run.profile.seed,
            )  # fmt: skip


def _row(
    run: Run, block: str, extractor: str, methods: list[str], ours: dict[tuple[str, str], Tensor]
) -> dict[str, Any]:
    """One extractor at one block; its gains by GIG's order beside those of the first, ``ours``."""
    images, labels = run.evaluated()
    concepts = run.concepts(block, extractor.removesuffix(OWN_CODES))
    if extractor.endswith(OWN_CODES):
        concepts = replace(concepts, lam=None)
    study = class_study(run.network, images, labels, concepts, methods, run.profile)
    row: dict[str, Any] = {"block": block, "extractor": extractor}
    row |= {"k": len(concepts), "lambda": concepts.lam, "gap": float(study.gaps["gig"].max())}
    for score in ("agreement", "probability"):
        curves = {method: found[score] for method, found in study.curves.items()}
        kept = float(curves["gig"].insertion.y[:, -1].mean())
        places, gains = len(run.profile.blocks), curves["gig"].gain()
        apart = compare(gains, ours.setdefault((block, score), gains), together(places))
        row[score] = summary(curves, places) | {
            "reconstruction": kept, "minus_ours": asdict(apart)
        }  # fmt: skip
    alike = likeness(
        run.network, run.dataset, concepts, study.importance["gig"][:, 0], labels,
        among=~run.dataset.held_out(block),
    )  # fmt: skip
    apart = compare(alike, ours.setdefault((block, "likeness"), alike), together(places))
    row["likeness"] = asdict(interval(alike)) | {"minus_ours": asdict(apart)}
    with nothing_kept():
        spent = seconds(run, images[:TIMED_PICTURES], labels[:TIMED_PICTURES], concepts)
    return row | {"seconds_per_picture": {s: t / TIMED_PICTURES for s, t in spent.items()}}


def seconds(run: Run, images: Tensor, labels: list[int], concepts: Concepts) -> dict[str, float]:
    """Seconds of GIG's steps for these pictures (N, 3, H, W): codes, importance, curves."""
    spent: dict[str, float] = {}
    size = run.profile.batch_size
    for image, label in zip(images, labels, strict=True):
        with timed(spent, "codes"):
            given = run.network, load_codes(run.network, image[None], concepts), concepts
        with timed(spent, "gig"):
            importance = class_importance(
                "gig", *given, [label], tolerance=run.profile.gap, batch_size=size
            )[:, 0]
        with timed(spent, "curves"):
            class_curves(
                *given, importance, [label], tolerance=run.profile.bracket, batch_size=size
            )
    return spent

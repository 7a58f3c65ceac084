"""C-deletion and C-insertion at every block (chapter 5)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gig_helpers import Concepts
from gig_helpers.codes import load_codes
from gig_helpers.curves import class_curves
from gig_helpers.importance import METHODS, class_importance
from gig_helpers.report.studies import class_study

from .run import TIMED_PICTURES, Run, nothing_kept, summary, timed, write


def make(run: Run) -> None:
    """Write ``classes.json``; at the last block, where a pass costs little, with every method."""
    profile, rows = run.profile, list[dict[str, Any]]()
    images, labels = run.evaluated
    for block, concepts in reversed(run.concepts.items()):
        last = block == profile.blocks[-1]
        methods = [name for name, method in METHODS.items() if last or method.affordable]
        study = class_study(run.network, images, labels, concepts, methods, profile)
        row: dict[str, Any] = {"block": block, "k": len(concepts), "lambda": concepts.lam}
        for score in ("agreement", "probability"):
            curves = {method: found[score] for method, found in study.curves.items()}
            kept = float(curves["gig"].insertion.y[:, -1].mean())
            row[score] = summary(curves) | {"reconstruction": kept}
        row["gap"] = float(study.gaps["gig"].max())
        few = images[:TIMED_PICTURES], labels[:TIMED_PICTURES]
        with nothing_kept():
            spent = seconds(run, *few, concepts, methods)
        row["seconds_per_picture"] = {step: t / len(few[0]) for step, t in spent.items()}
        rows.insert(0, row)
        write(
            run, "classes", rows, evaluated=len(images), timed=len(few[0]), gap=profile.gap,
            bracket=profile.bracket, seed=profile.seed,
        )  # fmt: skip


def seconds(
    run: Run, images: Tensor, labels: Sequence[int], concepts: Concepts, methods: Sequence[str]
) -> dict[str, float]:
    """Seconds of each step for these pictures (N, 3, H, W): codes, importance, curves."""
    spent: dict[str, float] = {}
    size = run.profile.batch_size
    for image, label in zip(images, labels, strict=True):
        with timed(spent, "codes"):
            given = run.network, load_codes(run.network, image[None], concepts), concepts
        for method in methods:
            with timed(spent, method):
                importance = class_importance(
                    method, *given, [label], tolerance=run.profile.gap, batch_size=size
                )[:, 0]
            with timed(spent, f"curves of {method}"):
                class_curves(
                    *given, importance, [label],
                    tolerance=run.profile.bracket, batch_size=size,
                )  # fmt: skip
    return spent

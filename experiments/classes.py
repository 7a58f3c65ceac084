"""C-deletion and C-insertion at every block (chapter 5)."""

from typing import Any

from gig_helpers import Concepts, decompose
from gig_helpers.report.examples import likeness
from gig_helpers.report.studies import WRONG_TARGET, study

from .run import TIMED_PICTURES, Run, means, minus, open_area, seconds_per_picture, summary, write

ORDERS = ["gig", "gradient", "random in use", WRONG_TARGET]
"""Orders of our concepts; the blinder ones wait for chapter 6, where the paper has them."""


def make(run: Run) -> None:
    """Write ``classes.json``."""
    rows: list[dict[str, Any]] = []
    for block in reversed(run.blocks):
        about = {"block": block, "extractor": "bisecting", "codes": "lasso"}
        rows.append(about | row_of(run, run.concepts(block), ORDERS, {}))
        write_classes(run, "classes", rows, len(run.evaluated()[1]))


def write_classes(run: Run, name: str, rows: list[dict[str, Any]], evaluated: int) -> None:
    """Write a file of rows of :func:`row_of`, with the settings that these depend on."""
    write(
        run, name, rows, evaluated=evaluated, held_out=True, timed=TIMED_PICTURES,
        gap=run.profile.gap, bracket=run.profile.bracket, seed=run.profile.seed,
    )  # fmt: skip


def row_of(
    run: Run, concepts: Concepts, orders: list[str], ours: dict[tuple[str, str], Any],
    most: int | None = None, places: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """One set of concepts; by GIG's order beside the block's first, whose curves ``ours`` keeps."""
    block, places = concepts.block, places or len(run.blocks)
    images, labels = run.evaluated(most)
    d = decompose(run.network, images, {block: concepts})
    made = study(d, block, [[label] for label in labels], orders, run.profile)
    row: dict[str, Any] = {
        "k": len(concepts), "lambda": concepts.lam, "gap": float(made.gaps["gig"].max())
    }  # fmt: skip
    for score in ("agreement", "probability"):
        curves = {order: scores[score][:, 0] for order, scores in made.curves.items()}
        by_gig = curves["gig"]
        first = ours.setdefault((block, score), by_gig)
        open_ = open_area(by_gig) + open_area(first)
        row[score] = summary(curves, places) | {
            "reconstruction": float(curves["gig"].insertion.y[:, -1].mean()),
            "minus_ours": minus(by_gig.gain(), first.gain(), places, open_),
        }
    alike = likeness(
        run.pfvs, concepts, made.importance["gig"][:, 0], labels, among=~run.pfvs.held_out(block)
    )
    beside = minus(alike, ours.setdefault((block, "likeness"), alike), places)
    row["likeness"] = means({"": alike})[""] | {"minus_ours": beside}
    return row | {"seconds_per_picture": seconds_per_picture(run, concepts)}

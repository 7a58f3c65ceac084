"""C-deletion and C-insertion at every block (chapter 5)."""

from typing import Any

from torch import Tensor

from gig_helpers import Concepts, SparseAutoencoder, decompose
from gig_helpers.concepts import tune
from gig_helpers.report.examples import likeness
from gig_helpers.report.studies import WRONG_TARGET, study

from .run import TIMED_PICTURES, Run, means, minus, seconds_per_picture, summary, write

ORDERS = ["gig", "gradient", "random in use", WRONG_TARGET]
"""Orders of our concepts; the blinder ones wait for chapter 6, where the paper has them."""

RIVALS = (("sae_short", "lasso"), ("sae_short", "own"))
"""Extractors, and whose codes: those of eq. 2, or of the extractor's own encoder.

Their concepts are judged beside ours, by GIG's order alone, as in Table 2.
"""


def make(run: Run) -> None:
    """Write ``classes.json``: our concepts by every order, then the rivals' by GIG's."""
    rows: list[dict[str, Any]] = []
    ours: dict[tuple[str, str], Tensor] = {}
    for extractor, codes in (("bisecting", "lasso"), *RIVALS):
        orders = ORDERS if extractor == "bisecting" else ORDERS[:1]
        for block in reversed(run.blocks):
            if run.affordable(block, extractor):
                concepts = _coded_by(run, block, extractor, codes)
                row = {"block": block, "extractor": extractor, "codes": codes}
                rows.append(row | _row(run, concepts, orders, ours))
                write(
                    run, "classes", rows, evaluated=len(run.evaluated()[1]), held_out=True,
                    timed=TIMED_PICTURES, gap=run.profile.gap, bracket=run.profile.bracket,
                    seed=run.profile.seed,
                )  # fmt: skip


def _coded_by(run: Run, block: str, extractor: str, codes: str) -> Concepts:
    concepts = run.concepts(block, extractor)
    if isinstance(concepts, SparseAutoencoder) and codes == "lasso":
        return tune(concepts.dictionary(), run.kept(block), seed=run.profile.seed)
    return concepts


def _row(
    run: Run, concepts: Concepts, orders: list[str], ours: dict[tuple[str, str], Tensor]
) -> dict[str, Any]:
    """One set of concepts; its gains by GIG's order beside those of the block's first, ``ours``."""
    block, places = concepts.block, len(run.blocks)
    images, labels = run.evaluated()
    d = decompose(run.network, images, {block: concepts})
    made = study(d, block, [[label] for label in labels], orders, run.profile)
    row: dict[str, Any] = {
        "k": len(concepts), "lambda": concepts.lam, "gap": float(made.gaps["gig"].max())
    }  # fmt: skip
    for score in ("agreement", "probability"):
        curves = {order: scores[score][:, 0] for order, scores in made.curves.items()}
        gains = curves["gig"].gain()
        row[score] = summary(curves, places) | {
            "reconstruction": float(curves["gig"].insertion.y[:, -1].mean()),
            "minus_ours": minus(gains, ours.setdefault((block, score), gains), places),
        }
    alike = likeness(
        run.pfvs, concepts, made.importance["gig"][:, 0], labels, among=~run.pfvs.held_out(block)
    )
    beside = minus(alike, ours.setdefault((block, "likeness"), alike), places)
    row["likeness"] = means({"": alike})[""] | {"minus_ours": beside}
    return row | {"seconds_per_picture": seconds_per_picture(run, concepts)}

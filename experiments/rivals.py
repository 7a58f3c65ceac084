"""As many concepts as families, by every extractor: C-deletion and C-insertion (chapter 5)."""

from itertools import product
from typing import Any

from gig_helpers import Concepts
from gig_helpers.concepts import tune
from gig_helpers.data.paper import PAPER
from gig_helpers.extractors import overcomplete
from gig_helpers.extractors.sae import Encoded

from .classes import row_of, write_classes
from .extractors import level
from .run import Run

ARMS = (
    ("families", "lasso"), ("bisecting", "lasso"), ("sae", "own"), ("sae", "lasso"),
    ("random_pfvs", "lasso"), ("kmeans", "lasso"), ("top_k", "own"),
    ("dictionary_learning", "lasso"), ("nmf", "own"), ("pca", "lasso"), ("ica", "lasso"),
    ("archetypal", "own"), ("matching_pursuit", "own"),
)  # fmt: skip
"""Extractors, and whose codes: those of eq. 2, or of the extractor's own encoder.

The first are families of our 8 atoms a channel, and what all others are compared with.
"""

PHOTOGRAPHS = 12
"""Photographs left out, which each is judged on."""


def make(run: Run) -> None:
    """Write ``rivals.json``: Table 2 at the level, by GIG's order alone."""
    k, rows = level(), list[dict[str, Any]]()
    ours: dict[tuple[str, str], Any] = {}
    blocks = [block for block in PAPER["table_1"] if block in run.blocks]
    for (name, codes), block in product(ARMS, reversed(blocks)):
        if name == "families":
            concepts = run.concepts(block).at(k)
        elif overcomplete.available(name) and run.affordable(block, name, k):
            concepts = _coded_by(run, block, name, codes, k)
        else:
            continue
        row = row_of(run, concepts, ["gig"], ours, PHOTOGRAPHS, len(blocks))
        rows.append({"block": block, "extractor": name, "codes": codes} | row)
        write_classes(run, "rivals", rows, PHOTOGRAPHS)


def _coded_by(run: Run, block: str, name: str, codes: str, k: int) -> Concepts:
    concepts = run.concepts(block, name, k=k)
    if isinstance(concepts, Encoded) and codes == "lasso":
        return tune(concepts.dictionary(), run.kept(block, k), seed=run.profile.seed)
    return concepts

"""Do a class's edges hold for another of its photographs? Chosen on some, tested on one."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gig_helpers import Decomposition, attribute, decompose
from gig_helpers.data import artifacts

from .edges import GAP, SOURCES, losses, ranks
from .run import Run, means, minus_others, write

PHOTOGRAPHS, CHOSEN_ON, TARGETS = 12, 2, 4
"""Left out, each of a class of its own; those of its class that its edges are chosen on; and the
most active later concepts of these."""

OWN, SAME, OTHER = "its own edges", "its class's edges", "another class's edges"
"""Of the photograph itself, of others of its class, of those of the next one's class."""


def make(run: Run) -> None:
    """Write ``transfer.json``: of families, pair by pair."""
    whole = {row["block"]: row for row in artifacts.recorded("families")["rows"] if "levels" in row}
    concepts = {c: run.concepts(c).at(whole[c]["supported"]) for c in run.chain}
    tested = _photographs(run)
    decomposed = [
        tuple(decompose(run.network, run.pictures[some], concepts) for some in ([left_out], others))
        for left_out, others in tested
    ]
    rows: list[dict[str, Any]] = []
    for a, b in pairwise(run.chain):
        each = [
            _of_photograph(own, same, decomposed[(n + 1) % len(tested)][1], a, b, n)
            for n, (own, same) in enumerate(decomposed)
        ]
        row: dict[str, Any] = {"source": a, "target": b}
        for part in each[0]:
            arms = {name: torch.tensor([one[part][name] for one in each]) for name in each[0][part]}
            row[part] = means(arms) | {"class_minus": minus_others(arms, SAME, len(run.chain) - 1)}
        rows.append(row)
        write(
            run, "transfer", rows, evaluated=len(tested), chosen_on=CHOSEN_ON, sources=SOURCES,
            targets=TARGETS, gap=GAP, held_out=True,
        )  # fmt: skip


def _photographs(run: Run) -> list[tuple[int, list[int]]]:
    """A photograph of a class that made no concept, and some that did; of so many classes."""
    left_out, found = set(run.left_out), []
    for of_class in run.right_by_class().values():
        first: dict[int, int] = {}  # one view of a photograph
        for i in of_class:
            first.setdefault(int(run.pfvs.photographs[i]), i)
        out = [i for i in first.values() if i in left_out]
        others = [i for i in first.values() if i not in left_out][:CHOSEN_ON]
        if out and len(others) == CHOSEN_ON:
            found.append((out[0], others))
    return [found[n * len(found) // PHOTOGRAPHS] for n in range(PHOTOGRAPHS)]


def _of_photograph(
    own: Decomposition, same: Decomposition, other: Decomposition, a: str, b: str, seed: int
) -> dict[str, dict[str, float]]:
    """How well edges of either kind agree with what is measured in the photograph left out.

    Edges between the concepts that the others of its class use; what targets lose is measured as
    in :mod:`experiments.edges`.
    """
    sources = _mass(same, a).nonzero()[:, 0]
    drawn = torch.randperm(len(sources), generator=torch.Generator().manual_seed(seed))[:SOURCES]
    sources, targets = sources[drawn.to(sources.device)], _mass(same, b).topk(TARGETS).indices
    lost = torch.stack([of_sum for of_sum, _ in losses(own, a, b, sources, targets)], dim=1).cpu()
    edges = {
        name: attribute(d, a, (b, targets), tolerance=GAP, rest=True)[..., sources].mean(0).cpu()
        for name, d in ((OWN, own), (SAME, same), (OTHER, other))
    }
    return {
        "ranks": {name: ranks(of, lost) for name, of in edges.items()},
        "signs": {name: _signs(of, lost) for name, of in edges.items()},
    }


def _mass(d: Decomposition, block: str) -> Tensor:
    """Σ_p |u_pq| ‖v_q‖ (K,) of a block's concepts, over all positions of all pictures."""
    here = d.concepts[block]
    return here.gathered(d.codes[block].abs().sum(dim=(0, 1)) * here.vectors.norm(dim=1))


def _signs(forecast: Tensor, measured: Tensor) -> float:
    """Share of the edges, of those that change anything, whose sign is right."""
    some = measured != 0
    return float((forecast.sign() == measured.sign())[some].double().mean())

"""Are a graph's nodes enough, and is what they leave out dispensable? (chapter 7)"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gig_helpers import Decomposition, attribute, decompose

from .extractors import level
from .run import Run, means, minus_others, write

PHOTOGRAPHS, GAP = 8, 0.05
"""Left out; what GIG may miss of a target's change, since orders are compared."""

SIZES = (2, 8, 32, 128)
"""Concepts that are kept in each block."""


def make(run: Run) -> None:
    """Write ``circuits.json``: of as many concepts a block as families are supported."""
    k = level()
    concepts = {block: run.concepts(block, k=k) for block in run.chain}
    images, labels = run.evaluated(PHOTOGRAPHS)
    each = [
        of_picture(decompose(run.network, image, concepts), label, GAP, seed)
        for seed, (image, label) in enumerate(zip(images.split(1), labels, strict=True))
    ]
    rows = list[dict[str, Any]]()
    for what in each[0]:
        for size in each[0][what]["relevance"]:
            arms = {
                order: torch.tensor([one[what][order][size] for one in each]).double()
                for order in each[0][what]
            }
            row = {"what": what, "kept": size, "score": means(arms)}
            rows.append(row | {"minus": minus_others(arms, "relevance", len(SIZES))})
    write(
        run, "circuits", rows, evaluated=len(labels), k=k, blocks=run.chain, gap=GAP,
        held_out=True,
    )  # fmt: skip


def of_picture(
    d: Decomposition, label: int, gap: float, seed: int = 0
) -> dict[str, dict[str, dict[int, float]]]:
    """Faithfulness of circuits of one picture, by order and number of concepts in each block.

    That is (m(C) − m(∅)) / (m(all) − m(∅)) of the class's logit m. Of ``faithful`` C are the first
    concepts of an order, what concepts miss stays; of ``without the rest`` it is dropped; of
    ``complement`` C are all but the first: it should be 0 where these are the whole cause.
    """
    ranked = orders(d, label, gap, seed)
    every = {block: range(len(d.concepts[block])) for block in d.blocks}
    nothing: dict[str, list[int]] = dict.fromkeys(d.blocks, [])
    found = {}
    for what, rest in (("faithful", True), ("complement", True), ("without the rest", False)):
        ends = [float(d.circuit(kept, rest=rest)[0, label]) for kept in (nothing, every)]
        found[what] = {
            order: {
                n: (float(d.circuit(_part(first, n, what), rest=rest)[0, label]) - ends[0])
                / (ends[1] - ends[0])
                for n in SIZES
            }
            for order, first in ranked.items()
        }
    return found


def _part(first: dict[str, list[int]], n: int, what: str) -> dict[str, list[int]]:
    return {
        block: numbers[n:] if what == "complement" else numbers[:n]
        for block, numbers in first.items()
    }


def orders(d: Decomposition, label: int, gap: float, seed: int) -> dict[str, dict[str, list[int]]]:
    """Concepts of each block, the most important first, by what says so.

    ``edges`` alone: the class's relevance of the last block's concepts, handed down the edges, each
    concept to those that made it, by their shares.
    """
    scores: dict[str, dict[str, Tensor]] = {
        "relevance": {
            b: attribute(d, b, label, tolerance=gap, rest=True)[0, 0, :-1] for b in d.blocks
        },
        "attribution patching": {
            b: attribute(d, b, label, method="gradient", rest=True)[0, 0, :-1] for b in d.blocks
        },
    }
    for name in ("activation", "random in use"):
        of = {b: attribute(d, b, label, method=name, seed=seed)[0, 0] for b in d.blocks}
        scores[name] = of
    last = d.blocks[-1]
    handed = {last: scores["relevance"][last]}
    for above, below in pairwise(reversed(d.blocks)):
        kept = handed[above].topk(SIZES[1]).indices
        edges = attribute(d, below, (above, kept), tolerance=2 * gap, rest=True)[0]
        share = edges / edges.sum(dim=1, keepdim=True)
        handed[below] = (share[:, :-1] * handed[above][kept, None]).sum(dim=0)
    scores["edges"] = handed
    return {
        name: {b: of_block[b].argsort(descending=True).tolist() for b in d.blocks}
        for name, of_block in scores.items()
    }

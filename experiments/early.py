"""Why insertion fails at the first two blocks: one choice changed at a time (chapter 5)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gig_helpers import Concepts, Decomposition, attribute, decompose, deletion_insertion
from gig_helpers.concepts import extract, tune
from gig_helpers.curves import always_on
from gig_helpers.data import artifacts

from .extractors import level
from .run import Run, mean, means, minus, write

BLOCKS = "layer1.0", "layer1.1"
"""Where the paper's insertion areas are far above ours."""

PHOTOGRAPHS = 6
"""Photographs left out, which each is judged on."""

GAP, BRACKET = 0.05, 0.04
"""Of relevances and areas, coarser than elsewhere: what is asked about is a half of the axis."""

AREAS = {"insertion": 1, "deletion": 1, "difference": 2}
"""Of how many areas a number is made, each within ± BRACKET."""

MOST_USED = 0.05
"""Of the concepts: those that are held in place where the most used ones are."""


def _of_book(run: Run, block: str) -> Concepts:
    return run.concepts(block)


def _around_mean(run: Run, block: str) -> Concepts:
    """As many, made, coded and begun at the mean PFV instead of μ_BN (eq. 8)."""
    x = run.kept(block)
    k, beta = len(run.concepts(block)), x.mean(dim=0)
    return tune(extract(x, beta, k, run.profile.seed, block=block), x, seed=run.profile.seed)


class Arm(NamedTuple):
    """What is other than in the book."""

    concepts: Callable[[Run, str], Concepts] = _of_book
    relevance: Mapping[str, Any] = {}
    order: Callable[[Tensor], Tensor] = torch.clone
    residual: bool = False
    held: bool = False
    families: bool = False


ARMS = {
    "nothing": Arm(),
    "order by size, |Γ|": Arm(order=torch.abs),
    "random order in use": Arm(relevance={"method": "random in use"}),
    "what the Lasso leaves kept": Arm(residual=True),
    "path from 0": Arm(relevance={"baseline": "zero"}),
    "families for atoms": Arm(families=True),
    "the most used held": Arm(held=True),
    "β the mean PFV": Arm(concepts=_around_mean),
}
"""By what is changed; the first is the book's."""


def make(run: Run) -> None:
    """Write ``early.json``."""
    rows: list[dict[str, Any]] = []
    book: dict[str, dict[str, Tensor]] = {}
    for (changed, arm), block in product(ARMS.items(), BLOCKS):
        about, areas, sums = _of_arm(run, block, arm)
        first = book.setdefault(block, areas)
        row = {"block": block, "changed": changed} | about | {"helpful": means(sums)}
        for name, values in areas.items():
            open_ = 2 * AREAS[name] * BRACKET if name in AREAS else None
            beside = minus(values, first[name], len(BLOCKS), open_)
            row[name] = mean(values) | {"minus_book": beside}
        rows.append(row)
        write(
            run, "early", rows, evaluated=len(run.evaluated(PHOTOGRAPHS)[1]), held_out=True,
            gap=GAP, bracket=BRACKET, most_used=MOST_USED,
        )  # fmt: skip


def _of_arm(
    run: Run, block: str, arm: Arm
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Of each photograph (N,): areas of the agreement, and what helpful concepts promise."""
    images, labels = run.evaluated(PHOTOGRAPHS)
    concepts, size = arm.concepts(run, block), run.profile.batch_size
    d = decompose(run.network, images, {block: concepts})
    use = (d.codes[block] != 0).flatten(0, 1).double().mean(dim=0)
    held = always_on(d.codes[block], float(use.quantile(1 - MOST_USED))) if arm.held else None
    spoken = concepts.at(level()) if arm.families else concepts
    curves, sums = [], []
    for n, label in enumerate(labels):
        one = d[[n]]
        found = _relevance(one, block, label, GAP, dict(arm.relevance), size)
        order = arm.order(spoken.gathered(found.pop("relevance").to(images)))
        given = replace(one, concepts={block: spoken}), block, label, order
        curves.append(_curves(*given, arm.residual, held, BRACKET, size))
        sums.append(found)
    holds = 0 if held is None else int(held.sum())
    about = {"k": len(spoken), "lambda": concepts.lam, "held": holds}
    return about, _each(curves), _each(sums)


def _each(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


@artifacts.cached("early-relevance", ignore=("batch_size",))
def _relevance(
    d: Decomposition, block: str, label: int, gap: float, options: dict[str, Any], batch_size: int
) -> dict[str, Tensor]:
    """Of atoms (1, 1, k); what those above 0 promise the class's logit, and what they bring it."""
    given: dict[str, Any] = {"tolerance": gap, "seed": label, "batch_size": batch_size} | options
    relevance = attribute(d, block, label, **given)
    u, here = d.codes[block], d.concepts[block]
    with torch.no_grad():
        states = here.decode(torch.cat([0 * u, u * (relevance[0] > 0), u]))
        none, alone, whole = d.network.segment(block)(states)[:, label]
    promised = relevance.clamp(min=0).sum()
    sums = {"promised": promised, "alone": alone - none, "with all": whole - none}
    return {"relevance": relevance} | sums


@artifacts.cached("early-curves", ignore=("batch_size",))
def _curves(
    d: Decomposition, block: str, label: int, order: Tensor, residual: bool, held: Tensor | None,
    bracket: float, batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    options: dict[str, Any] = {"residual": residual, "held": held, "tolerance": bracket}
    found = deletion_insertion(d, block, label, order, batch_size=batch_size, **options)
    both = found["agreement"]
    deletion, insertion = (area[0, 0] for area in both.auc())
    return {
        "insertion": insertion, "deletion": deletion, "difference": insertion - deletion,
        "kept": both.insertion.y[0, 0, -1],
    }  # fmt: skip

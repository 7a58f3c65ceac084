"""A concept that two classes share, taken out: do both lose by it? (chapter 7)"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import Concepts, concept_graph, decompose

from .run import Run, means, minus_others, write

PAIRS, OF_EACH, BLOCKS = 12, 2, 3
"""Pairs of classes, photographs of each, and how many of the last blocks of the chain."""


def make(run: Run) -> None:
    """Write ``shared.json``."""
    pairs, rows = [*_pairs(run)], list[dict[str, Any]]()
    blocks = run.chain[-BLOCKS:]
    for block in blocks:
        taken = [_taken_out(run, run.concepts(block), *pair) for pair in pairs]
        lost = {name: torch.stack([each[name] for each in taken]) for name in taken[0]}
        # Of the class that loses less.
        least = {name: table.amin(dim=1) for name, table in lost.items()}
        of_both = {
            name: means(dict(zip(("first", "second"), table.T, strict=True)))
            for name, table in lost.items()
        }
        minus = minus_others(least, "shared", len(blocks))
        rows.append({"block": block, "lost": of_both, "shared_minus": minus})
        write(run, "shared", rows, pairs=len(pairs), photographs_of_each=OF_EACH, held_out=True)


def _pairs(run: Run) -> Iterator[tuple[Tensor, list[int]]]:
    """Photographs (2 · OF_EACH, 3, H, W) of two classes that are alike, and their classes.

    None of them made a concept; alike are classes whose rows of the classifier point the same way.
    """
    out = set(run.left_out)
    by_class = {c: [i for i in ids if i in out] for c, ids in run.right_by_class().items()}
    several = sorted(c for c, ids in by_class.items() if len(ids) >= OF_EACH)
    weights = F.normalize(run.network.class_vectors[several], dim=1).cpu()
    above = torch.triu_indices(len(several), len(several), 1)
    alike = (weights @ weights.T)[above[0], above[1]].argsort(descending=True)[:PAIRS]
    for pair in above[:, alike].T.tolist():
        chosen = [i for n in pair for i in by_class[several[n]][:OF_EACH]]
        yield run.pictures[chosen], [several[n] for n in pair for _ in range(OF_EACH)]


def _taken_out(
    run: Run, concepts: Concepts, images: Tensor, classes: list[int]
) -> dict[str, Tensor]:
    """Logit (2,) that either class loses, of its own photographs, without one concept.

    The concept is the one that by the graph both share; the first class's own strongest one; or
    any that these photographs use, which stands for the others too where there is none. It is
    chosen on the first photograph of each class, and taken out of the others.
    """
    block, rows = concepts.block, range(0, len(classes), OF_EACH)
    d = decompose(run.network, images, {block: concepts})
    graph = concept_graph(
        d[[*rows]], [classes[n] for n in rows], top=1, shared=1, tolerance=run.profile.gap,
        batch_size=run.profile.batch_size,
    )  # fmt: skip
    group = {
        data["group"]: data["concept"] for _, data in graph.nodes(data=True) if "group" in data
    }
    used = d.codes[block][[*rows]].any(dim=1).any(dim=0).nonzero()[:, 0].cpu()
    generator = torch.Generator().manual_seed(run.profile.seed)
    blind = int(used[torch.randint(len(used), (1,), generator=generator)])
    own = group.get(str(classes[0]), blind)
    chosen = {"shared": group.get("shared", blind), "the first's own": own, "any in use": blind}
    others = [n for n in range(len(classes)) if n not in rows]
    d, of = d[others], [classes[n] for n in others]
    before = d.logits()
    lost = {name: (before - d.logits({block: q})).cpu() for name, q in chosen.items()}
    return {
        name: less[range(len(of)), of].unflatten(0, (2, OF_EACH - 1)).mean(dim=1)
        for name, less in lost.items()
    }

"""A concept that two classes share, taken out: do both lose by it? (chapter 7)"""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import Concepts, concept_graph
from gig_helpers.codes import load_codes
from gig_helpers.data.profiles import CHAIN
from gig_helpers.report.statistics import compare, interval
from gig_helpers.report.studies import seen_right

from .run import Run, together, write

PAIRS, OF_EACH, BLOCKS = 12, 2, 3
"""Pairs of classes, photographs of each, and how many of the last blocks of the chain."""


def make(run: Run) -> None:
    """Write ``shared.json``."""
    blocks = [block for block in CHAIN if block in run.profile.blocks][-BLOCKS:]
    pairs, rows = [*_pairs(run)], list[dict[str, Any]]()
    for block in blocks:
        taken = [_taken_out(run, run.concepts(block), *pair) for pair in pairs]
        lost = {name: torch.stack([each[name] for each in taken]) for name in taken[0]}
        rows.append({"block": block} | _row(lost, len(blocks)))
        write(run, "shared", rows, pairs=len(pairs), photographs_of_each=OF_EACH, held_out=True)


def _pairs(run: Run) -> Iterator[tuple[Tensor, list[int]]]:
    """Photographs (2 · OF_EACH, 3, H, W) of two classes that are alike, and their classes.

    None of them made a concept; alike are classes whose rows of the classifier point the same way.
    """
    dataset, block = run.dataset, run.profile.blocks[0]
    out = set(dataset.picture_ids(block)[dataset.held_out(block)].tolist())
    of_class: dict[int, list[int]] = {}
    for i in out.intersection(seen_right(run.pictures, dataset)):
        of_class.setdefault(int(dataset.predictions()[i]), []).append(i)
    several = sorted(c for c, found in of_class.items() if len(found) >= OF_EACH)
    weights = F.normalize(run.network.class_vectors[several], dim=1).cpu()
    above = torch.triu_indices(len(several), len(several), 1)
    alike = (weights @ weights.T)[above[0], above[1]].argsort(descending=True)[:PAIRS]
    for pair in above[:, alike].T.tolist():
        classes = [several[n] for n in pair for _ in range(OF_EACH)]
        chosen = [i for n in pair for i in sorted(of_class[several[n]])[:OF_EACH]]
        images = torch.stack([run.pictures[i] for i in chosen])
        yield images.to(run.network.device), classes


def _taken_out(
    run: Run, concepts: Concepts, images: Tensor, classes: list[int]
) -> dict[str, Tensor]:
    """Logit (2,) that either class loses, of its own photographs, without one concept.

    The concept is the one that by the graph both share; the first class's own strongest one; or
    any that these photographs use, which stands for the others too where there is none.
    """
    network, block = run.network, concepts.block
    codes = torch.cat([load_codes(network, image[None], concepts) for image in images])
    graph = concept_graph(
        network, {block: codes}, {block: concepts}, classes, top=1, shared=1,
        tolerance=run.profile.gap, batch_size=run.profile.batch_size,
    )  # fmt: skip
    group = {d["group"]: d["concept"] for _, d in graph.nodes(data=True) if "group" in d}
    used = codes.any(dim=1).any(dim=0).nonzero()[:, 0].cpu()
    generator = torch.Generator().manual_seed(run.profile.seed)
    blind = int(used[torch.randint(len(used), (1,), generator=generator)])
    own = group.get(str(classes[0]), blind)
    chosen = {"shared": group.get("shared", blind), "the first's own": own, "any in use": blind}
    with torch.no_grad():
        x = network.preactivations(images, [block])[block]
        lost = {}
        for name, q in chosen.items():
            part = network.arranged(codes[:, :, q, None] * concepts.vectors[q], block)
            less = network.logits_from(x, block) - network.logits_from(x - part, block)
            each = less[range(len(classes)), classes].cpu()
            lost[name] = each.unflatten(0, (2, OF_EACH)).mean(dim=1)
    return lost


def _row(lost: dict[str, Tensor], places: int) -> dict[str, Any]:
    """Means over pairs (P, 2), and whether the class that loses less loses by the shared one."""
    less = {name: table.amin(dim=1) for name, table in lost.items()}
    return {
        "lost": {
            name: {of: asdict(interval(table[:, n])) for n, of in enumerate(("first", "second"))}
            for name, table in lost.items()
        },
        "shared_minus": {
            name: asdict(compare(less["shared"], found, together(places)))
            for name, found in less.items()
            if name != "shared"
        },
    }

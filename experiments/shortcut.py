"""A shortcut that is known to be there, found by its mistakes alone and taken out (chapter 10)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from captum.attr import LayerConductance
from imagenet_w import AddWatermark
from torch import Tensor

from gig_helpers import (
    Concepts,
    Decomposition,
    PFVDataset,
    attribute,
    decompose,
    fit_concepts,
    sample,
    suspects,
)
from gig_helpers.data.pictures import Pictures

from .run import Run, mean, minus, write

LEARNT, HELD_OUT, MISTAKES, FEW = 60, 200, 20, 8
"""Photographs that make concepts, that are evaluated, and of the first those that are asked.

The last: whose conductance is taken.
"""

FAMILIES, STEPS, MARGIN, GAP = 8, (1, 2, 3), 0.03, 0.1
"""Of a block; how many are taken out; of clean accuracy, what a repair may cost; of relevance."""

RIVALS = ("activation", 0), ("random", 0), ("random", 1), ("random", 2)
"""Orders that know nothing of mistakes, and their seeds."""


def make(run: Run) -> None:
    """Write ``shortcut.json``: what is right and *carton*, with families taken out of a block."""
    learnt, held = parts(run)
    rows = taken_out(run, learnt, held, run.chain[-3:])
    write(run, "shortcut", rows, learnt=len(learnt), evaluated=len(held), margin=MARGIN)


def parts(run: Run) -> tuple[list[int], list[int]]:
    """Pictures that make concepts, and that are evaluated: of the labelled, spread over the set."""
    labels, paths = run.pictures.labels, run.pictures.paths
    views = {path: i for i, path in reversed([*enumerate(paths)]) if labels[i] is not None}
    spread = torch.linspace(0, len(views) - 1, LEARNT + HELD_OUT).round().int().unique().tolist()
    chosen = [sorted(views.values())[n] for n in spread]
    learnt = chosen[:: len(chosen) // LEARNT][:LEARNT]
    return learnt, [i for i in chosen if i not in learnt]


def watermarked(run: Run, **options: Any) -> Pictures:
    """All pictures with a watermark, of these options of ``AddWatermark``."""
    return run.pictures.changed(AddWatermark(run.network.input_size[0], **options))


def concepts_of(
    run: Run, learnt: list[int], blocks: Sequence[str], **options: Any
) -> tuple[PFVDataset, dict[str, Concepts]]:  # fmt: skip
    """Concepts of pictures, each with a watermark and without, and the PFVs that made them."""
    sizes = replace(run.profile, blocks=tuple(blocks), pfvs_per_concept=50, families=FAMILIES)
    folder = watermarked(run).subset(learnt).joined(run.pictures.subset(learnt))
    pfvs = sample(run.network, folder, sizes)
    return pfvs, fit_concepts(pfvs, sizes, **options)


def mistakes_of(pfvs: PFVDataset, here: Concepts) -> tuple[Decomposition, list[int]]:
    """Some of what the network gets wrong, with a watermark and without; and true classes."""
    wrong = pfvs.wrong()
    wrong = wrong[:: max(1, len(wrong) // MISTAKES)][:MISTAKES]
    true = [int(pfvs.pictures.labels[i] or 0) for i in wrong]
    return decompose(pfvs.network, pfvs.pictures[wrong], {here.block: here}), true


@torch.no_grad()
def taken_out(
    run: Run, learnt: list[int], held: list[int], blocks: Sequence[str]
) -> list[dict[str, Any]]:  # fmt: skip
    """Of each block what is right and *carton* of the held out, whatever is taken out of it."""
    sides = {"watermarked": watermarked(run), "clean": run.pictures}
    images, twins = ({side: of[some] for side, of in sides.items()} for some in (held, learnt))
    pfvs, concepts = concepts_of(run, learnt, blocks)
    true = torch.tensor([run.pictures.labels[i] for i in held])
    carton = run.network.classes.index("carton")
    rows = list[dict[str, Any]]()
    for block, here in concepts.items():
        apart = [seen(run, of, block).mean(dim=(0, 1)) for of in twins.values()]
        outcomes = dict[str, dict[str, Tensor]]()
        for name, x in _cuts(run, here, pfvs, images, apart[0] - apart[1]):
            wet, dry = (run.network.segment(block)(y).argmax(dim=1).cpu() for y in x.values())
            found = {"right": wet == true, "carton": wet == carton, "clean": dry == true}
            outcomes[name] = {what: values.double() for what, values in found.items()}
        whole, three = outcomes["nothing"]["clean"], outcomes["suspects, 3"]
        blind = [outcomes[f"{by} {seed}, 3"]["right"] for by, seed in RIVALS]
        rivals = {"activation": blind[0], "random": torch.stack(blind[1:]).mean(dim=0)}
        rivals["nine tenths of the clean"] = 0.9 * whole
        tests = {name: minus(three["right"], of, len(blocks)) for name, of in rivals.items()}
        tests["clean, within the margin"] = minus(three["clean"], whole - MARGIN, len(blocks))
        each = {name: {k: mean(v) for k, v in of.items()} for name, of in outcomes.items()}
        rows.append({"block": block, "outcomes": each, "minus": tests})
    return rows


@torch.no_grad()
def seen(run: Run, images: Tensor, block: str) -> Tensor:
    """PFVs (N, HW, C) of a block."""
    made = [run.network.preactivations(part, [block])[block] for part in images.split(16)]
    return run.network.positions(torch.cat(made), block)


def _cuts(
    run: Run, here: Concepts, pfvs: PFVDataset, images: dict[str, Tensor], apart: Tensor
) -> Iterator[tuple[str, dict[str, Tensor]]]:  # fmt: skip
    """PFVs of the block with something out, by the order that says what, and how much of it."""
    block, network = here.block, run.network
    x = {side: seen(run, of, block) for side, of in images.items()}
    yield "nothing", x
    mistakes, true = mistakes_of(pfvs, here)
    orders = {"suspects": suspects(mistakes, block, true, tolerance=GAP).index.tolist()}
    for by, seed in RIVALS:
        values = attribute(mistakes, block, 0, method=by, seed=seed)[:, 0].mean(dim=0)
        orders[f"{by} {seed}"] = values.argsort(descending=True).tolist()
    coded = {side: decompose(network, of, {block: here}) for side, of in images.items()}
    for by, order in orders.items():
        for n in STEPS if by == "suspects" else STEPS[-1:]:
            atoms = here.atoms(order[:n])
            part = {s: d.codes[block][:, :, atoms] @ here.vectors[atoms] for s, d in coded.items()}
            yield f"{by}, {n}", {side: x[side] - part[side] for side in x}
    directions = {"a direction from pairs": apart[None]}
    directions |= {f"projection, {n}": here.directions[orders["suspects"][:n]] for n in STEPS}
    split = network.without(block, torch.zeros_like(here.directions[:1]), here.beta)
    few = mistakes[:FEW]
    said = few.logits().argmax(dim=1)
    given = LayerConductance(split, split[1]).attribute(few.images, target=said, n_steps=8)
    channels = network.positions(given, block).sum(dim=(0, 1)).argsort(descending=True)
    axes = torch.eye(len(here.beta)).to(here.beta)[channels]
    directions |= {f"channels, {n}": axes[:n] for n in (4, 16, 64)}
    for name, some in directions.items():
        layer = network.without(block, some, here.beta)[1]
        maps = {side: layer(network.arranged(y, block)) for side, y in x.items()}
        yield name, {side: network.positions(y, block) for side, y in maps.items()}

"""A shortcut that is known to be there, found by its mistakes alone and taken out (chapter 10)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from captum.attr import LayerConductance
from imagenet_w import AddWatermark
from torch import Tensor

from gig_helpers import Concepts, PFVDataset, attribute, decompose, fit_concepts, sample, suspects

from .run import Run, mean, minus, write

LEARNT, HELD_OUT, MISTAKES, FEW = 60, 200, 20, 8
"""Photographs that make concepts, that are evaluated, and of the first those that are asked.

The last: whose conductance is taken.
"""

FAMILIES, STEPS, MARGIN, GAP = 8, (1, 2, 3), 0.03, 0.1
"""Of a block; how many are taken out; of clean accuracy, what a repair may cost; of relevance."""

RIVALS = ("activation", 0), ("random", 0), ("random", 1), ("random", 2)
"""Orders that know nothing of mistakes, and their seeds."""


@torch.no_grad()
def make(run: Run) -> None:
    """Write ``shortcut.json``: what is right and *carton*, with families taken out of a block."""
    labels, paths = run.pictures.labels, run.pictures.paths
    views = {path: i for i, path in reversed([*enumerate(paths)]) if labels[i] is not None}
    spread = torch.linspace(0, len(views) - 1, LEARNT + HELD_OUT).round().int().unique().tolist()
    chosen = [sorted(views.values())[n] for n in spread]
    learnt = chosen[:: len(chosen) // LEARNT][:LEARNT]
    held = [i for i in chosen if i not in learnt]
    sides = {"watermarked": run.pictures.changed(AddWatermark(run.network.input_size[0]))}
    sides["clean"] = run.pictures
    images, twins = ({side: of[some] for side, of in sides.items()} for some in (held, learnt))
    blocks = run.chain[-3:]
    sizes = replace(run.profile, blocks=tuple(blocks), pfvs_per_concept=50, families=FAMILIES)
    folder = sides["watermarked"].subset(learnt).joined(sides["clean"].subset(learnt))
    pfvs = sample(run.network, folder, sizes)
    true, carton = torch.tensor([labels[i] for i in held]), run.network.classes.index("carton")
    rows = list[dict[str, Any]]()
    for block, here in fit_concepts(pfvs, sizes).items():
        apart = [_pfvs(run, of, block).mean(dim=(0, 1)) for of in twins.values()]
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
        write(run, "shortcut", rows, learnt=len(learnt), evaluated=len(held), margin=MARGIN)


def _pfvs(run: Run, images: Tensor, block: str) -> Tensor:
    parts = [run.network.preactivations(part, [block])[block] for part in images.split(16)]
    return run.network.positions(torch.cat(parts), block)


def _cuts(
    run: Run, here: Concepts, pfvs: PFVDataset, images: dict[str, Tensor], apart: Tensor
) -> Iterator[tuple[str, dict[str, Tensor]]]:  # fmt: skip
    """PFVs of the block with something out, by the order that says what, and how much of it."""
    block, network, wrong = here.block, run.network, pfvs.wrong()
    wrong = wrong[:: len(wrong) // MISTAKES][:MISTAKES]  # with a watermark and without
    x = {side: _pfvs(run, of, block) for side, of in images.items()}
    yield "nothing", x
    mistakes = decompose(network, pfvs.pictures[wrong], {block: here})
    true = [int(pfvs.pictures.labels[i] or 0) for i in wrong]
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
    few, said = mistakes[:FEW].images, pfvs.predictions()[wrong[:FEW]].to(network.device)
    given = LayerConductance(split, split[1]).attribute(few, target=said, n_steps=8)
    channels = network.positions(given, block).sum(dim=(0, 1)).argsort(descending=True)
    axes = torch.eye(len(here.beta)).to(here.beta)[channels]
    directions |= {f"channels, {n}": axes[:n] for n in (4, 16, 64)}
    for name, some in directions.items():
        layer = network.without(block, some, here.beta)[1]
        maps = {side: layer(network.arranged(y, block)) for side, y in x.items()}
        yield name, {side: network.positions(y, block) for side, y in maps.items()}

"""PFVs drawn uniformly instead of by their contribution: what changes? (chapter 8)"""

from typing import Any

import torch
from torch import Tensor

from gig_helpers import Concepts, Network, decompose
from gig_helpers.concepts import extract, tune
from gig_helpers.curves import Curves
from gig_helpers.data import artifacts
from gig_helpers.data.pictures import Pictures
from gig_helpers.lasso import wanted_nonzeros
from gig_helpers.pfv import draw
from gig_helpers.report.studies import study

from .classes import ORDERS
from .extractors import PHOTOGRAPHS, missed, one_per_photograph
from .run import Run, means, minus, open_area, write


def make(run: Run) -> None:
    """Write ``sampling.json``."""
    sizes = run.profile.per_image, run.profile.batch_size, run.profile.seed
    drawn = _uniform(run.network, run.pictures, run.chain, *sizes)
    rows: list[dict[str, Any]] = []
    for block in reversed(run.chain):
        rows.insert(0, {"block": block} | _row(run, block, drawn[block]))
        write(
            run, "sampling", rows, evaluated=len(run.evaluated()[1]), held_out=True,
            gap=run.profile.gap, bracket=run.profile.bracket, seed=run.profile.seed,
        )  # fmt: skip


@artifacts.cached("uniform", ignore=("batch_size",))
def _uniform(
    network: Network, pictures: Pictures, blocks: list[str], count: int, batch_size: int, seed: int
) -> dict[str, Tensor]:
    """PFVs (N, count, C) at positions that are all as likely, of every picture."""
    drawn: dict[str, list[Tensor]] = {block: [] for block in blocks}
    for ids in torch.arange(len(pictures)).split(batch_size):
        images = pictures[ids].to(network.device)
        seeds = [seed * len(pictures) + i for i in ids.tolist()]
        with torch.no_grad():
            maps = network.preactivations(images, blocks)
        for block in blocks:
            x = network.positions(maps[block], block)
            # Where nothing contributes, positions are drawn uniformly.
            (place,) = draw(torch.zeros(x.shape[:2]), count, seeds).unbind(dim=2)
            drawn[block].append(x[torch.arange(len(x))[:, None], place].cpu())
    return {block: torch.cat(parts) for block, parts in drawn.items()}


def _row(run: Run, block: str, drawn: Tensor) -> dict[str, Any]:
    """Both kinds of concepts: what they miss of both kinds of PFVs, and how they serve a class."""
    ours = run.concepts(block)
    out = torch.zeros(len(drawn), dtype=torch.bool)
    out[run.left_out] = True
    x = drawn[~out].flatten(0, 1).to(ours.beta)
    made = extract(x, ours.beta, len(ours), run.profile.seed, block=block)
    theirs = tune(made, x, seed=run.profile.seed)
    spread = torch.linspace(0, int(out.sum()) - 1, min(PHOTOGRAPHS, int(out.sum()))).long()
    targets = {
        "by contribution": one_per_photograph(run, block)[0],
        "uniformly": drawn[out][spread, 0].to(ours.beta),
    }
    nonzeros, places = wanted_nonzeros(block, len(ours)), len(run.chain)
    row: dict[str, Any] = {"k": len(ours), "nonzeros": nonzeros}
    for how, pfvs in targets.items():
        errors, least = (missed(concepts, pfvs, nonzeros)[0] for concepts in (theirs, ours))
        row[f"missed of PFVs drawn {how}"] = _beside(errors, least, places)
    # By all orders of chapter 5, whose curves of our concepts are on disk.
    served, own = _curves(run, theirs, ORDERS[:1]), _curves(run, ours, ORDERS)
    open_ = open_area(served) + open_area(own)
    return row | {"gain": _beside(served.gain(), own.gain(), places, open_)}


def _curves(run: Run, concepts: Concepts, orders: list[str]) -> Curves:
    """Curves (N, S) of the agreement, by GIG's order."""
    images, labels = run.evaluated()
    d = decompose(run.network, images, {concepts.block: concepts})
    made = study(d, concepts.block, [[label] for label in labels], orders, run.profile)
    return made.curves["gig"]["agreement"][:, 0]


def _beside(
    theirs: Tensor, ours: Tensor, places: int, bracket: float | None = None
) -> dict[str, Any]:  # fmt: skip
    """Of concepts of uniformly drawn PFVs, of ours, and theirs less ours."""
    both = means({"uniform": theirs, "ours": ours})
    return both | {"minus_ours": minus(theirs, ours, places, bracket)}

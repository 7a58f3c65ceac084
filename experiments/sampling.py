"""PFVs drawn uniformly instead of by their contribution: what changes? (chapter 8)"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from gig_helpers import Concepts, Network
from gig_helpers.concepts import extract, tune, wanted_nonzeros
from gig_helpers.data import artifacts
from gig_helpers.data.pictures import Pictures
from gig_helpers.data.profiles import CHAIN
from gig_helpers.pfv import draw
from gig_helpers.report.statistics import compare, interval
from gig_helpers.report.studies import class_study

from .classes import ORDERS
from .extractors import PHOTOGRAPHS, missed, one_per_photograph
from .run import Run, together, write


def make(run: Run) -> None:
    """Write ``sampling.json``."""
    blocks = [block for block in CHAIN if block in run.profile.blocks]
    sizes = run.profile.per_image, run.profile.batch_size, run.profile.seed
    drawn = _uniform(run.network, run.pictures, tuple(blocks), *sizes)
    rows: list[dict[str, Any]] = []
    for block in reversed(blocks):
        rows.insert(0, {"block": block} | _row(run, block, drawn[block], len(blocks)))
        write(
            run, "sampling", rows, evaluated=len(run.evaluated()[1]), held_out=True,
            gap=run.profile.gap, bracket=run.profile.bracket, seed=run.profile.seed,
        )  # fmt: skip


@artifacts.cached("uniform", ignore=("batch_size",))
def _uniform(
    network: Network, pictures: Pictures, blocks: tuple[str, ...], count: int, batch_size: int,
    seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """PFVs (N, count, C) at positions that are all as likely, of every picture."""
    found: dict[str, list[Tensor]] = {block: [] for block in blocks}
    for ids in torch.arange(len(pictures)).split(batch_size):
        images = torch.stack([pictures[i] for i in ids.tolist()]).to(network.device)
        with torch.no_grad():
            maps = network.preactivations(images, blocks)
        for block, x in maps.items():
            x = network.positions(x, block)
            seeds = [seed * len(pictures) + i for i in ids.tolist()]
            # Where nothing contributes, positions are drawn uniformly.
            (place,) = draw(torch.zeros(x.shape[:2]), count, seeds).unbind(dim=2)
            found[block].append(x[torch.arange(len(x))[:, None], place].cpu())
    return {block: torch.cat(parts) for block, parts in found.items()}


def _row(run: Run, block: str, drawn: Tensor, places: int) -> dict[str, Any]:
    """Both kinds of concepts: what they miss of both kinds of PFVs, and how they serve a class."""
    dataset, beta = run.dataset, run.network.bn_shift(block)
    out, ours = dataset.photographs % 4 == 0, run.concepts(block)
    x = drawn[~out].flatten(0, 1).to(beta)
    theirs = tune(extract(x, beta, len(ours), run.profile.seed, block=block), x)
    spread = torch.linspace(0, int(out.sum()) - 1, min(PHOTOGRAPHS, int(out.sum()))).long()
    left_out = {
        "by contribution": one_per_photograph(run, block)[0],
        "uniformly": drawn[out][spread, 0].to(beta),
    }
    row: dict[str, Any] = {"k": len(ours), "nonzeros": wanted_nonzeros(block, len(ours))}
    for name, targets in left_out.items():
        both = (missed(concepts, targets, row["nonzeros"])[0] for concepts in (theirs, ours))
        row[f"missed of PFVs drawn {name}"] = _beside(both, places)
    gains = (_gains(run, theirs, ORDERS[:1]), _gains(run, ours, ORDERS))
    return row | {"gain": _beside(gains, places)}


def _gains(run: Run, concepts: Concepts, orders: list[str]) -> Tensor:
    """Insertion less deletion area (N,) of the agreement, by GIG's order."""
    study = class_study(run.network, *run.evaluated(), concepts, orders, run.profile)
    return study.curves["gig"]["agreement"].gain()


def _beside(both: Iterable[Tensor], places: int) -> dict[str, Any]:
    """Of concepts of uniformly drawn PFVs, of ours, and theirs less ours."""
    theirs, ours = both
    apart = compare(theirs, ours, together(places))
    return {
        "uniform": asdict(interval(theirs)), "ours": asdict(interval(ours)),
        "minus_ours": asdict(apart),
    }  # fmt: skip

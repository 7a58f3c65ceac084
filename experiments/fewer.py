"""Fewer photographs: what they change in the paper's Tables 1 and 2 (chapter 3)."""

from itertools import product
from typing import Any

import torch
from torch import Tensor

from gig_helpers import Concepts
from gig_helpers.concepts import extract, tune
from gig_helpers.lasso import wanted_nonzeros

from . import rivals
from .classes import row_of
from .extractors import PHOTOGRAPHS, missed, one_per_photograph
from .run import Run, mean, minus, write

BLOCKS = "layer1.1", "layer2.2"
"""Where a quarter of the photographs has two PFVs or more for each of the paper's concepts."""

SHARES = 1.0, 0.5, 0.25
"""Of the photographs that make concepts."""


def make(run: Run) -> None:
    """Write ``fewer.json``."""
    rows: list[dict[str, Any]] = []
    of_all, areas_of_all = dict[str, Tensor](), dict[tuple[str, str], Any]()
    for block, share in product(BLOCKS, SHARES):
        photographs = _photographs(run, block, share)
        concepts = _made(run, block, photographs)
        if concepts is None:
            continue
        left_out, _ = one_per_photograph(run, block)
        errors, count = missed(concepts, left_out, wanted_nonzeros(block, len(concepts)))
        beside = minus(errors, of_all.setdefault(block, errors), len(BLOCKS))
        about = {"block": block, "photographs": len(photographs), "nonzeros": float(count)}
        about["error"] = mean(errors) | {"minus_all": beside}
        few = rivals.PHOTOGRAPHS
        row = row_of(run, concepts, ["gig"], areas_of_all, few, len(BLOCKS))
        rows.append(about | row)
        write(
            run, "fewer", rows, test_photographs=PHOTOGRAPHS, evaluated=few, shares=SHARES,
            held_out=True, gap=run.profile.gap, bracket=run.profile.bracket,
        )  # fmt: skip


def _photographs(run: Run, block: str, share: float) -> Tensor:
    """Some of those that make concepts; those of a smaller share are among those of a larger."""
    owner = run.pfvs.photographs[run.pfvs.picture_ids(block)]
    every = owner[run.made_of(block)].unique()
    generator = torch.Generator().manual_seed(run.profile.seed)
    return every[torch.randperm(len(every), generator=generator)[: round(share * len(every))]]


def _made(run: Run, block: str, photographs: Tensor) -> Concepts | None:
    """The paper's 8 a channel, of these photographs alone; none where their PFVs are too few."""
    owner, profile = run.pfvs.photographs[run.pfvs.picture_ids(block)], run.profile
    x = run.pfvs.vectors(block)[torch.isin(owner, photographs)].to(run.network.device)
    k = profile.n_concepts(x.shape[1], int(run.made_of(block).sum()))
    if profile.n_concepts(x.shape[1], len(x)) < k:
        return None
    made = extract(x, run.network.bn_shift(block), k, profile.seed, block=block)
    return tune(made, x, seed=profile.seed)

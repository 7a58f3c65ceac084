"""How many families come back from other photographs, and does that grow with the photographs?"""

from typing import Any

import torch

from gig_helpers import families
from gig_helpers.clustering import BisectingSphericalKMeans
from gig_helpers.concepts import extract

from .controls import members
from .run import Run, write

LEVELS = (*families.LEVELS, 1024, 2048)
"""More than a fit tries by itself: up to the paper's k at layer1.2."""

SHARES = 0.25, 0.5, 1.0
"""Of the photographs."""


def make(run: Run) -> None:
    """Write ``families.json``."""
    rows = []
    for block in run.chain:
        rows += [_support(run, block, share) for share in SHARES]
        if level := rows[-1]["supported"]:
            made = extract(run.kept(block), run.network.bn_shift(block), level, block=block)
            rows.append(members(run, made) | {"k": level})
        write(run, "families", rows, shares=SHARES, floor=families.EXCESS)


def _support(run: Run, block: str, share: float) -> dict[str, Any]:
    """What speaks for each level of the families of so many of the photographs."""
    pfvs, ids = run.pfvs, run.pfvs.picture_ids(block)
    origin = pfvs.photographs[ids]
    every = origin.unique()
    generator = torch.Generator().manual_seed(run.profile.seed)
    chosen = every[torch.randperm(len(every), generator=generator)[: round(share * len(every))]]
    rows = torch.isin(origin, chosen)
    x, beta = pfvs.vectors(block)[rows].to(run.network.device), run.network.bn_shift(block)
    classes = pfvs.classes()[ids[rows]]
    excess = families.agreement(x, beta, origin[rows], classes, levels=LEVELS)
    tree = BisectingSphericalKMeans(max(LEVELS), random_state=run.profile.seed).fit(x - beta)
    grown = torch.from_numpy(tree.labels_), torch.from_numpy(tree.parents_)
    table = families.support(*grown, origin[rows], excess, LEVELS)
    table["splits"] = excess.T.tolist()
    levels = table.dropna().reset_index().to_dict("records")  # a third is too small for the others
    return {
        "block": block, "photographs": len(chosen), "pfvs": len(x),
        "supported": families.supported(table), "levels": levels,
    }  # fmt: skip

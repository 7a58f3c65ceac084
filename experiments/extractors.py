"""Rel-ℓ2 of all extractors at the blocks and non-zeros of the paper's Table 1 (chapter 3)."""

from dataclasses import asdict, replace
from typing import Any

import torch
from sklearn.linear_model import orthogonal_mp
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import EXTRACTORS, Concepts, SparseAutoencoder, lasso
from gig_helpers.codes import relative_l2
from gig_helpers.concepts import wanted_nonzeros
from gig_helpers.data import artifacts
from gig_helpers.data.paper import PAPER
from gig_helpers.report.statistics import interval

from .run import AFFORDABLE, Run, minus, rounded, write

PHOTOGRAPHS = 200
"""Photographs on either side of the split that errors are measured on, by one PFV each."""

SEEDS = {"bisecting": 3, "random_pfvs": 3}
"""Seeds that an extractor is run with; the others are run with one."""


def make(run: Run) -> None:
    """Write ``concepts.json``, the cheapest extractor first."""
    rows: dict[str, dict[str, Any]] = {}
    ours: dict[str, dict[str, Tensor]] = {}
    for name in EXTRACTORS:
        for block in (b for b in PAPER["table_1"] if b in run.blocks):
            if not run.affordable(block, name):
                continue
            errors = _of_all_seeds(run, block, name)
            k = len(run.concepts(block, name))
            row = {"block": block, "k": k, "nonzeros": wanted_nonzeros(block, k), "methods": {}}
            methods = rows.setdefault(block, row)["methods"]
            methods[name] = _compared(errors, ours.setdefault(block, errors))
            write(
                run, "concepts", list(rows.values()), test_photographs=PHOTOGRAPHS,
                left_out="every fourth photograph", affordable=AFFORDABLE,
            )  # fmt: skip


def _of_all_seeds(run: Run, block: str, name: str) -> dict[str, Tensor]:
    """One extractor's numbers, of every seed."""
    left_out, seen = one_per_photograph(run, block)
    of_seeds = []
    for draw in range(SEEDS.get(name, 1)):
        concepts = run.concepts(block, name, draw)
        nonzeros = wanted_nonzeros(block, len(concepts))
        errors = _errors(concepts, left_out, seen, nonzeros)
        of_seeds.append(errors | {"seconds": torch.tensor(run.seconds(block, name, draw))})
    every = {part: torch.stack([each[part] for each in of_seeds]) for part in of_seeds[0]}
    # The pursuit takes longer than all else, so it has the first seed alone.
    first, beta = run.concepts(block, name), run.network.bn_shift(block)
    pursued = _pursued(first, left_out, beta, round(nonzeros))
    return every | {"pursuit": pursued["errors"][None]}


def one_per_photograph(run: Run, block: str) -> tuple[Tensor, Tensor]:
    """PFVs (PHOTOGRAPHS, C) of photographs that made no concept, and of some that did.

    A photograph's first PFV, drawn by its contribution, so that all of them are independent.
    """
    owner, x = run.pfvs.photographs[run.pfvs.picture_ids(block)], run.pfvs.vectors(block)
    out = run.pfvs.held_out(block)
    first = torch.zeros(len(x), dtype=torch.bool)
    first[[int((owner == photograph).nonzero()[0]) for photograph in owner.unique()]] = True
    generator = torch.Generator().manual_seed(run.profile.seed + 1)
    left_out, seen = (
        part[torch.randperm(len(part), generator=generator)[:PHOTOGRAPHS]].to(run.network.device)
        for part in (x[out & first], x[~out & first])
    )
    return left_out, seen


@artifacts.cached("errors")
def _errors(
    concepts: Concepts, left_out: Tensor, seen: Tensor, nonzeros: float
) -> dict[str, Tensor]:
    """Rel-ℓ2 (PFVs,) on either side of the split, of codes by eq. 2."""
    parts, directions = {}, concepts
    if isinstance(concepts, SparseAutoencoder):
        own, directions = concepts.encode(left_out), concepts.dictionary()
        parts["nonzeros_own_codes"] = _nonzeros(own)
        parts["own_codes"] = relative_l2(left_out, concepts.decode(own))
    for where, x in (("left_out", left_out), ("seen", seen)):
        parts[where], parts[f"nonzeros_{where}"] = missed(directions, x, nonzeros)
    return parts


def missed(concepts: Concepts, x: Tensor, nonzeros: float) -> tuple[Tensor, Tensor]:
    """Rel-ℓ2 (PFVs,) at the λ that gives these very PFVs so many non-zeros, and their mean count.

    Concepts are compared at the same number of non-zeros.
    """
    lam = lasso.lambda_for(x, concepts.vectors, nonzeros, beta=concepts.beta)
    codes = replace(concepts, lam=lam).encode(x, tol=1e-4)
    return relative_l2(x, concepts.decode(codes)), _nonzeros(codes)


@artifacts.cached("pursuit")
def _pursued(concepts: Concepts, x: Tensor, beta: Tensor, nonzeros: int) -> dict[str, Tensor]:
    """Rel-ℓ2 (PFVs,), like for like: unit atoms, one offset, exactly as many codes in each PFV."""
    alike = replace(concepts, vectors=F.normalize(concepts.vectors, dim=1), beta=beta)
    atoms, targets = (part.T.cpu().numpy() for part in (alike.vectors, x - beta))
    codes = torch.from_numpy(orthogonal_mp(atoms, targets, n_nonzero_coefs=nonzeros)).T.to(x)
    return {"errors": relative_l2(x, alike.decode(codes))}


def _nonzeros(codes: Tensor) -> Tensor:
    return (codes != 0).sum(1).float().mean()


def _compared(errors: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Any]:
    """One extractor's mean errors, alone and beside those of the first.

    An autoencoder's own codes, which the paper's table judges, stand beside our codes by eq. 2.
    """
    entry: dict[str, Any] = {"records": _records(errors)}
    for where in errors.keys() & {"left_out", "seen", "pursuit", "own_codes"}:
        mean = errors[where].mean(dim=0)
        beside = ours["left_out" if where == "own_codes" else where].mean(dim=0)
        entry[where] = asdict(interval(mean)) | {
            "seeds": rounded(errors[where].mean(dim=1)),
            "minus_ours": minus(mean, beside, len(PAPER["table_1"])),
        }
    return entry


def _records(errors: dict[str, Tensor]) -> list[dict[str, float]]:
    """Seconds and mean non-zeros of each seed."""
    numbers = {name: part.tolist() for name, part in errors.items() if part.ndim == 1}
    values = zip(*numbers.values(), strict=True)
    return [dict(zip(numbers, row, strict=True)) for row in values]

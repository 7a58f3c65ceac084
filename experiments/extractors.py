"""All extractors at the blocks of the paper's Table 1: Rel-ℓ2, and what comes back (chapter 3)."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from sklearn.linear_model import orthogonal_mp
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import EXTRACTORS, Concepts, lasso
from gig_helpers.codes import relative_l2
from gig_helpers.concepts import nearest_concept
from gig_helpers.data import artifacts
from gig_helpers.data.paper import PAPER
from gig_helpers.extractors import overcomplete, random_pfvs
from gig_helpers.extractors.sae import Encoded, unused
from gig_helpers.families import thirds

from .run import AFFORDABLE, FEWER, Run, mean, minus, rounded, write

PHOTOGRAPHS = 200
"""Photographs on either side of the split that errors are measured on, by one PFV each."""

SEEDS, TRAINED = 3, 1
"""Seeds that an extractor is run with, and one that is no rival of the paper and takes minutes."""

SEVERAL = ("bisecting", "random_pfvs", "kmeans", "pca", "sae")
"""Those that are run with several."""


def level() -> int:
    """Fewest families that all photographs support at a block, as ``families.json`` has it."""
    rows = artifacts.recorded("families")["rows"]
    whole = {row["block"]: row["supported"] for row in rows if "levels" in row}
    return min(filter(None, whole.values()))


def make(run: Run) -> None:
    """Write ``concepts.json``: at the level, then at 8 concepts a channel, the cheapest first."""
    rows: dict[tuple[str, bool], dict[str, Any]] = {}
    ours: dict[tuple[str, bool], dict[str, Tensor]] = {}
    names = [name for name in EXTRACTORS if overcomplete.available(name)]
    names.sort(key=lambda name: name not in SEVERAL)
    blocks = [b for b in PAPER["table_1"] if b in run.blocks]
    for k, name, block in product((level(), None), names, blocks):
        if not run.affordable(block, name, k):
            continue
        place = block, k is not None
        errors = _of_all_seeds(run, block, name, k)
        count = len(run.concepts(block, k=k))
        about = {"block": block, "k": count, "nonzeros": lasso.wanted_nonzeros(block, count)}
        row = rows.setdefault(place, about | {"at_level": k is not None, "methods": {}})
        row["methods"][name] = _compared(errors, ours.setdefault(place, errors))
        if k is not None:
            row["methods"][name]["comes_back"] = _again(run, block, name, k)
        write(
            run, "concepts", list(rows.values()), test_photographs=PHOTOGRAPHS,
            left_out="every fourth photograph", affordable=AFFORDABLE, seeds=[SEEDS, TRAINED],
            pfvs_at_level=FEWER,
        )  # fmt: skip


def seeds_of(name: str) -> int:
    """How many seeds an extractor is run with."""
    return SEEDS if name in SEVERAL else TRAINED


def _of_all_seeds(run: Run, block: str, name: str, k: int | None) -> dict[str, Tensor]:
    """One extractor's numbers, of every seed."""
    left_out, seen = one_per_photograph(run, block)
    nonzeros, of_seeds = lasso.wanted_nonzeros(block, len(run.concepts(block, k=k))), []
    for draw in range(seeds_of(name)):
        concepts = run.concepts(block, name, draw, k)
        errors = _errors(concepts, left_out, seen, nonzeros)
        if isinstance(concepts, Encoded):
            errors |= _own(concepts, run.concepts(block, k=k), left_out, nonzeros)
            errors["dead"] = torch.tensor(float(unused(concepts, run.kept(block, k))))
        of_seeds.append(errors | {"seconds": torch.tensor(run.seconds(block, name, draw, k))})
    every = {part: torch.stack([each[part] for each in of_seeds]) for part in of_seeds[0]}
    # The pursuit takes longer than all else, so it has the first seed alone.
    first, beta = run.concepts(block, name, k=k), run.network.bn_shift(block)
    pursued = _pursued(first, left_out, beta, round(nonzeros))
    return every | {"pursuit": pursued["errors"][None]}


def _again(run: Run, block: str, name: str, k: int) -> list[float]:
    """Excess agreement, of every seed; of none where a third of the photographs is too small."""
    x, ids = run.kept(block, k), run.pfvs.picture_ids(block)[run.made_of(block, k)]
    given = x, run.network.bn_shift(block), run.pfvs.photographs[ids]
    what = run.pfvs.classes()[ids], k, EXTRACTORS[name].fit
    excess = [float(comes_back(*given, *what, seed)["excess"]) for seed in range(seeds_of(name))]
    return [value for value in excess if not math.isnan(value)]


@artifacts.cached("comes-back")
def comes_back(
    x: Tensor, beta: Tensor, photographs: Tensor, classes: Tensor, k: int,
    fit: Callable[..., Concepts], seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """How far other photographs give the same concepts: what families are chosen by, for any fit.

    The photographs are dealt into thirds A, B and C (:func:`gig_helpers.families.thirds`). C's PFVs
    are sorted by the nearest concept of A's and by that of B's; their adjusted mutual information,
    less that with as many PFVs of B drawn blindly and seen from B's offset, is the excess.
    """
    third = thirds(photographs, classes, torch.Generator().manual_seed(seed))
    one, other, judges = (x[third == part] for part in range(3))
    if 2 * k > min(len(one), len(other)):
        return {"excess": torch.tensor(torch.nan)}
    # Thirds stand in one order of classes: one seed for both would draw the same places.
    of_one, of_other = fit(one, beta, k, seed), fit(other, beta, k, seed + SEEDS)
    if isinstance(of_other, overcomplete.NonNegative):  # it knows what the ReLU lets through alone
        other, judges = F.relu(other), F.relu(judges)
    # Seen from another offset other PFVs are neighbours: blind draws have the fit's own.
    blind = random_pfvs(other, of_other.beta, k, seed + 2 * SEEDS)
    by_one, by_other, by_chance = (
        nearest_concept(judges, concepts).cpu() for concepts in (of_one, of_other, blind)
    )
    found = adjusted_mutual_info_score(by_one, by_other)
    return {"excess": torch.tensor(found - adjusted_mutual_info_score(by_one, by_chance))}


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
    directions = concepts.dictionary() if isinstance(concepts, Encoded) else concepts
    parts = {}
    for where, x in (("left_out", left_out), ("seen", seen)):
        parts[where], parts[f"nonzeros_{where}"] = missed(directions, x, nonzeros)
    return parts


@artifacts.cached("own-codes")
def _own(concepts: Concepts, ours: Concepts, x: Tensor, nonzeros: float) -> dict[str, Tensor]:
    """Rel-ℓ2 (PFVs,) of an encoder's own codes: all, as many as wanted, and ours at their number.

    As many as wanted are those of each PFV that bring most; an encoder may have fewer.
    """
    own = concepts.encode(x)
    brought = own.abs() * concepts.vectors.norm(dim=1)
    largest = brought.topk(round(nonzeros), dim=1).indices
    kept = torch.zeros_like(own).scatter(1, largest, own.gather(1, largest))
    parts = {}
    for name, codes in (("own_codes", own), ("own_codes_kept", kept)):
        parts[name] = relative_l2(x, concepts.decode(codes))
        parts[f"nonzeros_{name}"] = _nonzeros(codes)
    # More than an eighth as many as channels take the Lasso minutes.
    as_many = min(float(_nonzeros(own)), x.shape[1] / 8, len(ours.vectors) / 2)
    parts["ours_at_own"], parts["nonzeros_ours_at_own"] = missed(ours, x, as_many)
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

    An encoder's own codes, which the paper's table judges, stand beside our codes by eq. 2: all of
    them, as many as wanted, and all beside as many of ours (``own_codes_alike``).
    """
    beside = dict.fromkeys(("own_codes", "own_codes_kept"), ours["left_out"])
    beside |= {where: ours[where] for where in ("left_out", "seen", "pursuit")}
    judged = {where: errors[where] for where in beside if where in errors}
    if "ours_at_own" in errors:
        judged["own_codes_alike"] = errors["own_codes"]
        beside["own_codes_alike"] = errors["ours_at_own"]
    entry: dict[str, Any] = {"records": _records(errors)}
    for where, of_seeds in judged.items():
        each = of_seeds.mean(dim=0)
        beside_it = minus(each, beside[where].mean(dim=0), len(PAPER["table_1"]))
        seeds = rounded(of_seeds.mean(dim=1))
        entry[where] = mean(each) | {"seeds": seeds, "minus_ours": beside_it}
    return entry


def _records(errors: dict[str, Tensor]) -> list[dict[str, float]]:
    """Seconds and mean non-zeros of each seed."""
    numbers = {name: part.tolist() for name, part in errors.items() if part.ndim == 1}
    values = zip(*numbers.values(), strict=True)
    return [dict(zip(numbers, row, strict=True)) for row in values]

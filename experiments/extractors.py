"""Rel-ℓ2 of all extractors at the paper's numbers of non-zeros (chapter 3)."""

import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

import gig_helpers.extractors
from gig_helpers import clustering, concepts, lasso, reconstruct
from gig_helpers.codes import encode, relative_l2
from gig_helpers.concepts import wanted_nonzeros
from gig_helpers.data import artifacts
from gig_helpers.extractors import EXTRACTORS, SparseAutoencoder, sae, simple
from gig_helpers.report.statistics import compare, interval

from .run import Run, rounded, write

TEST_PFVS = 400
"""PFVs a block, from either side of the split, that errors are measured on."""

SEEDS = {"bisecting": 3, "random PFVs": 3}
"""Seeds that an extractor is run with; the others are run with one."""

_CODE = (clustering, concepts, lasso, gig_helpers.extractors, sae, simple)


def make(run: Run) -> None:
    """Write ``concepts.json``, the cheapest extractor first."""
    rows: dict[str, dict[str, Any]] = {}
    ours: dict[str, dict[str, Tensor]] = {}
    for name in EXTRACTORS:
        for block in run.profile.blocks:
            k, nonzeros = _sizes(run, block)
            row = rows.setdefault(block, {"block": block, "k": k, "nonzeros": nonzeros})
            errors = _of_all_seeds(run, block, name)
            row.setdefault("methods", {})[name] = _compared(errors, ours.setdefault(block, errors))
            write(
                run, "concepts", list(rows.values()), test_pfvs=TEST_PFVS,
                left_out="every fourth photograph",
            )  # fmt: skip


def _sizes(run: Run, block: str) -> tuple[int, float]:
    """k and the wanted non-zeros, for concepts of the PFVs that are not held out."""
    kept = int((~run.dataset.held_out(block)).sum())
    k = run.profile.n_concepts(run.network.channels(block), kept)
    return k, wanted_nonzeros(block, k)


def _of_all_seeds(run: Run, block: str, name: str) -> dict[str, Tensor]:
    """One extractor's numbers, of every seed."""
    beta, out = run.network.bn_shift(block), run.dataset.held_out(block)
    x = run.dataset.vectors(block)
    generator = torch.Generator().manual_seed(run.profile.seed + 1)
    left_out, seen = (
        part[torch.randperm(len(part), generator=generator)[:TEST_PFVS]].to(beta)
        for part in (x[out], x[~out])
    )
    given = (name, block, x[~out].to(beta), left_out, seen, beta, *_sizes(run, block))
    found = [_errors(*given, seed) for seed in range(SEEDS.get(name, 1))]
    return {part: torch.stack([one[part] for one in found]) for part in found[0]}


@artifacts.cached("errors", *_CODE)
def _errors(
    name: str, block: str, made_from: Tensor, left_out: Tensor, seen: Tensor, beta: Tensor, k: int,
    nonzeros: float, seed: int,
) -> dict[str, Tensor]:  # fmt: skip
    """Rel-ℓ2 (PFVs,) on either side of the split, and what it took."""
    begin = time.perf_counter()
    found = EXTRACTORS[name](made_from, beta, k, seed, block=block)
    parts = {"seconds": torch.tensor(time.perf_counter() - begin)}
    for where, x in (("left_out", left_out), ("seen", seen)):
        # λ on these very PFVs: extractors are compared at the same number of non-zeros.
        lam = lasso.lambda_for(x, found.vectors, nonzeros, beta=found.beta)
        codes = encode(x, replace(found, lam=lam), tol=1e-4)
        parts[where] = relative_l2(x, reconstruct(codes, found))
        parts[f"nonzeros_{where}"] = _nonzeros(codes)
    if isinstance(found, SparseAutoencoder):
        own = found.codes(left_out)
        parts["own_nonzeros"] = _nonzeros(own)
        parts["own_relative_l2"] = relative_l2(left_out, reconstruct(own, found)).mean()
        parts["own_epochs"] = torch.tensor(len(found.losses))
    return parts


def _nonzeros(codes: Tensor) -> Tensor:
    return (codes != 0).sum(1).float().mean()


def _compared(errors: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Any]:
    """One extractor's mean errors, alone and beside those of the first."""
    entry: dict[str, Any] = {"records": _records(errors)}
    for where in ("left_out", "seen"):
        mean = errors[where].mean(dim=0)
        entry[where] = asdict(interval(mean)) | {
            "seeds": rounded(errors[where].mean(dim=1)),
            "minus_ours": asdict(compare(mean, ours[where].mean(dim=0))),
        }
    return entry


def _records(errors: dict[str, Tensor]) -> list[dict[str, Any]]:
    """What each seed took and used; of an autoencoder also what its own codes are like."""
    numbers = {name: part.tolist() for name, part in errors.items() if part.ndim == 1}
    records: list[dict[str, Any]] = []
    for values in zip(*numbers.values(), strict=True):
        record = dict(zip(numbers, values, strict=True))
        own = {n.removeprefix("own_"): record.pop(n) for n in numbers if n.startswith("own_")}
        records.append(record | ({"own_codes": own} if own else {}))
    return records

"""Edges tested as edges: does what an edge says happen when its source is taken out? (chapter 6)"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import Decomposition, attribute, decompose
from gig_helpers.data import artifacts

from .run import Run, means, minus_others, write

PHOTOGRAPHS, SOURCES, TARGETS, GAP = 12, 24, 8, 0.05
"""Left out; of each the concepts in use that are taken out, and the most active later ones.

The last: what GIG may miss of a target's change, since ranks are compared.
"""

PATCHED = 8, 4
"""Of these, those whose edges are patched."""

FORECASTS: dict[str, dict[str, Any]] = {
    "GIG": {"rest": True},
    "GIG, to the reconstruction": {},
    "gradient × code, there": {"method": "gradient"},
    "attribution patching": {"method": "gradient", "rest": True},
}
"""What :func:`gig_helpers.attribute` is asked for; the first and the last are of the true map."""


def make(run: Run) -> None:
    """Write ``edges.json``: of atoms and of families, pair by pair and to the class."""
    images, labels = run.evaluated(PHOTOGRAPHS)
    whole = {row["block"]: row for row in artifacts.recorded("families")["rows"] if "levels" in row}
    rows = list[dict[str, Any]]()
    pairs: list[tuple[str, str | None]] = [*pairwise(run.chain), *((a, None) for a in run.chain)]
    for kind, (a, b) in product(("families", "atoms"), pairs):
        level = {c: whole[c]["supported"] if kind == "families" else None for c in run.chain}
        concepts = {c: run.concepts(c).at(level[c]) for c in (a, b) if c is not None}
        each = [
            of_picture(decompose(run.network, image, concepts), label, GAP, seed)
            for seed, (image, label) in enumerate(zip(images.split(1), labels, strict=True))
        ]
        arms = {part: _stacked([one[part] for one in each]) for part in each[0]}
        row: dict[str, Any] = {"of": kind, "source": a, "target": b or "class"}
        for part, of_part in arms.items():
            row[part] = means(of_part)
            if "GIG" in of_part:
                row[part] |= {"gig_minus": minus_others(of_part, "GIG", len(run.chain))}
        rows.append(row)
        write(
            run, "edges", rows, evaluated=len(labels), sources=SOURCES, targets=TARGETS,
            patched=PATCHED, gap=GAP, held_out=True,
        )  # fmt: skip


def _stacked(rows: list[dict[str, float]]) -> dict[str, Tensor]:
    return {name: torch.tensor([row[name] for row in rows]).double() for name in rows[0]}


def of_picture(
    d: Decomposition, label: int, gap: float, seed: int = 0
) -> dict[str, dict[str, float]]:  # fmt: skip
    """How well forecasts agree with what is measured, of one picture at one pair of blocks.

    Taken out is one concept of the first block, of the network's own map, residual kept; measured
    is what the later block's Σ_i ⟨w_i, v̄_t⟩, or the class's logit, loses by it.

    Returns
    -------
    dict
        ``ranks``: Spearman's correlation over all edges; ``signs``: the share of edges whose sign
        is right; ``largest``: the correlation with what max_i ⟨w_i, v̄_t⟩ loses; ``patched``: that
        of edges with what the class loses when only their effect is carried on, see
        :func:`patched`; ``rest``: the share of the targets' change that the rest brings;
        ``helpful``: how many edges have two ends that speak for the class, how many of these
        oppose, and how many of those are true: without its source the target grows.
    """
    a, b = d.blocks[0], d.blocks[1] if len(d.blocks) > 1 else None
    generator = torch.Generator().manual_seed(seed)
    used = d.concepts[a].gathered(d.codes[a][0].abs().sum(dim=0)).nonzero()[:, 0]
    chosen = used[torch.randperm(len(used), generator=generator)[:SOURCES].to(used.device)]
    target: Any = label
    if b is not None:
        there = d.concepts[b]
        mass = there.gathered(d.codes[b][0].abs().sum(dim=0) * there.vectors.norm(dim=1))
        numbers = mass.topk(TARGETS).indices
        target = b, numbers
    lost = [*losses(d, a, b, chosen, target if b is None else numbers)]
    forecasts = {}
    for name, options in FORECASTS.items():
        brought = attribute(d, a, target, tolerance=gap, **options)[0]
        forecasts[name] = brought[:, chosen].cpu()
        if name == "GIG":
            rest = brought[:, -1] / brought.sum(dim=1)
    mass = attribute(d, a, target, method="activation")[0][:, chosen].cpu()
    forecasts["activation × cosine"] = mass * _alike(d, a, b, chosen, target)
    summed, largest = (torch.stack(part, dim=1).cpu() for part in zip(*lost, strict=True))
    found = {
        "ranks": {name: ranks(of, summed) for name, of in forecasts.items()},
        "signs": {
            n: float((of.sign() == summed.sign()).double().mean()) for n, of in forecasts.items()
        },
        "rest": {"": float(rest.median())},
    }
    if b is not None:
        found["largest"] = {name: ranks(of, largest) for name, of in forecasts.items()}
        helps = [
            attribute(d, block, label, tolerance=gap, rest=True)[0, 0, which].cpu()
            for block, which in ((a, chosen), (b, numbers))
        ]
        found["patched"] = patched(d, label, chosen, numbers, forecasts["GIG"], helps)
        helpful = (helps[0] > 0) & (helps[1] > 0)[:, None]
        against = helpful & (forecasts["GIG"] < 0)
        counts = {"edges": helpful, "oppose": against, "truly": against & (summed < 0)}
        found["helpful"] = {name: float(of.sum()) for name, of in counts.items()}
    return found


@torch.no_grad()
def _alike(d: Decomposition, a: str, b: str | None, sources: Tensor, target: Any) -> Tensor:
    """Cosine (T, Q) of each target with what a source alone, on one position, brings about."""
    here = d.concepts[a]
    alone = torch.cat([here.beta[None], here.beta + here.directions[sources]])[:, None]
    answers = d.network.segment(a, b)(alone).flatten(1)
    wanted = (
        F.one_hot(torch.tensor([target]), answers.shape[1]).to(answers)
        if b is None
        else F.normalize(d.concepts[b].directions[target[1]], dim=1)
    )
    return (wanted @ F.normalize(answers[1:] - answers[0], dim=1).T).cpu()


def ranks(forecast: Tensor, measured: Tensor) -> float:
    """Spearman's correlation over all edges."""
    return float(spearmanr(forecast.flatten(), measured.flatten()).statistic)


@torch.no_grad()
def losses(
    d: Decomposition, a: str, b: str | None, sources: Tensor, targets: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """What each target (T,) loses, by its sum and by its largest place, without each source."""
    segment, x = d.network.segment(a, b), d.reconstruction(a) + d.residual(a)
    before = segment(x)[0]
    if b is None:
        for part in _parts(d, a, sources):
            lost = (before - segment(x - part)[0])[[targets]]
            yield lost, lost
        return
    unit = F.normalize(d.concepts[b].directions[targets], dim=1)
    for part in _parts(d, a, sources):
        after = segment(x - part)[0]
        lost = (before - after) @ unit.T
        yield lost.sum(dim=0), ((before @ unit.T).amax(dim=0) - (after @ unit.T).amax(dim=0))


def _parts(d: Decomposition, block: str, concepts: Tensor) -> Iterator[Tensor]:
    """Σ_q u_pq v_q (1, P, C) of each concept's atoms."""
    here = d.concepts[block]
    for q in concepts.tolist():
        atoms = here.atoms(q)
        yield d.codes[block][:, :, atoms] @ here.vectors[atoms]


@torch.no_grad()
def patched(
    d: Decomposition, label: int, sources: Tensor, targets: Tensor, edges: Tensor,
    relevance: Sequence[Tensor],
) -> dict[str, float]:  # fmt: skip
    """Path patching: only one source's effect on one target is carried on to the class.

    Of what the later block loses without the source the part along v̄_t alone is taken out of the
    later block's map. A graph says of it: the edge, as a share of its target's, times the target's
    relevance for the class. What knows no edge: the relevance of either end.
    """
    a, b = d.blocks
    n, m = PATCHED
    segment, x = d.network.segment(a, b), d.reconstruction(a) + d.residual(a)
    above, before = d.network.segment(b), segment(x)
    unit = F.normalize(d.concepts[b].directions[targets[:m]], dim=1)
    whole = ((before[0] - d.concepts[b].beta) @ unit.T).sum(dim=0)[:, None].cpu()
    measured = []
    for part in _parts(d, a, sources[:n]):
        along = (before - segment(x - part))[0] @ unit.T  # (P, T)
        states = before - along.T[:, :, None] * unit[:, None]
        measured.append((above(before) - above(states))[:, label])
    of_source, of_target = relevance[0][:n], relevance[1][:m, None]
    forecasts = {
        "GIG": edges[:m, :n] / whole * of_target,
        "the target's relevance": of_target.expand(-1, len(of_source)),
        "the source's relevance": of_source.expand(len(of_target), -1),
    }
    lost = torch.stack(measured, dim=1).cpu()
    return {name: ranks(of, lost) for name, of in forecasts.items()}

"""What should fall apart, and what should stay: weights, seeds, photographs, members."""

import copy
from dataclasses import replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import Concepts, Network, attribute, decompose
from gig_helpers.clustering import rows_of
from gig_helpers.concepts import extract, nearest_concept
from gig_helpers.extractors import random_pfvs

from .run import Run, means, minus, write

STAGES = ("fc", "layer4", "layer3", "layer2")
"""Parts of a ResNet from the top down, whose weights are shuffled one after the other."""

SHUFFLED_PICTURES = 12
"""Pictures whose concepts' relevance is compared between the network and its shuffled copies."""

ALIKE = 0.9
"""Cosine from which on a concept counts as found again."""

MEMBERS = 3
"""PFVs that stand for a card; a concept needs twice as many held-out photographs."""


def make(run: Run) -> None:
    """Write ``controls.json``."""
    rows = [row for block in run.chain for row in _stability(run, block)]
    rows += [members(run, run.concepts(block)) for block in run.chain]
    network = run.network
    for stage in STAGES:
        network = shuffled(network, stage, run.profile.seed)
        below = [block for block in run.chain if block.split(".")[0] < stage or stage == "fc"]
        rows += [_apart(run, network, block, stage) for block in below]
        write(run, "controls", rows, pictures=SHUFFLED_PICTURES, alike=ALIKE, held_out=True)


def _stability(run: Run, block: str) -> list[dict[str, Any]]:
    """How near each concept is to one of another run's: another seed, other photographs, chance."""
    pfvs, x, ours = run.pfvs, run.kept(block), run.concepts(block)
    owner = pfvs.photographs[pfvs.picture_ids(block)[~pfvs.held_out(block)]]
    half = (owner // 4 % 2).bool()
    k = run.profile.n_concepts(x.shape[1], int(half.sum()))
    of_half = extract(x[half], ours.beta, k)
    pairs = {
        "another seed": (ours, run.concepts(block, draw=1)),
        # One seed would draw the same places of photographs in one order of classes.
        "other photographs": (of_half, extract(x[~half], ours.beta, k, seed=1)),
        "other photographs' PFVs, drawn blindly": (of_half, random_pfvs(x[~half], ours.beta, k)),
    }
    rows = []
    for name, (concepts, others) in pairs.items():
        nearest = _nearest(concepts, others)
        rows.append({
            "control": "stability", "block": block, "of": name, "k": len(concepts),
            "median": float(nearest.median()), "again": float((nearest > ALIKE).double().mean()),
        })  # fmt: skip
    return rows


def _nearest(concepts: Concepts, others: Concepts) -> Tensor:
    """Largest cosine (k,) of each concept with any of the others."""
    theirs = F.normalize(others.vectors, dim=1).T
    parts = F.normalize(concepts.vectors, dim=1).split(rows_of(theirs.shape[1]))
    return torch.cat([(part @ theirs).amax(dim=1) for part in parts]).cpu()


def members(run: Run, concepts: Concepts) -> dict[str, Any]:
    """Is what a concept's nearest PFVs show true of its others? Held out, one per photograph.

    By the cosine to the concept, and by how alike the PFVs' classes are: the cosine of their rows
    of the classifier, since hardly two of these photographs are of one class.
    """
    pfvs, block = run.pfvs, concepts.block
    out = pfvs.held_out(block)
    ids = pfvs.picture_ids(block)[out]
    x = pfvs.vectors(block)[out].to(concepts.beta)
    unit, centres = F.normalize(x - concepts.beta, dim=1), F.normalize(concepts.directions, dim=1)
    owner = nearest_concept(x, concepts)
    order = (unit * centres[owner]).sum(dim=1).argsort(descending=True).cpu()
    photograph = pfvs.photographs[ids].tolist()
    of_concept: dict[int, dict[int, int]] = {}
    for row, q in zip(order.tolist(), owner.cpu()[order].tolist(), strict=True):
        of_concept.setdefault(q, {}).setdefault(photograph[row], row)
    enough = {q: [*each.values()] for q, each in of_concept.items() if len(each) >= 2 * MEMBERS}
    one_each = [*dict(zip(photograph, range(len(ids)), strict=True)).values()]
    classes = F.normalize(run.network.class_vectors, dim=1)[pfvs.predictions()[ids]]
    generator = torch.Generator().manual_seed(run.profile.seed)
    names = ("nearest", "drawn blindly", "of any concept")
    cosine, likeness = ({name: list[float]() for name in names} for _ in range(2))
    for q, rows in enough.items():
        # The blind draw is among the others: what the card does not show.
        some = rows[:MEMBERS], _draw(rows[MEMBERS:], generator), _draw(one_each, generator)
        for name, chosen in zip(names, some, strict=True):
            cosine[name].append(float((unit[chosen] @ centres[q]).mean()))
            first, second = classes[chosen][torch.triu_indices(MEMBERS, MEMBERS, 1)]
            likeness[name].append(float((first * second).sum(dim=1).mean()))
    result: dict[str, Any] = {"control": "members", "block": block, "concepts": len(enough)}
    places = len(run.chain)
    for title, table in {"cosine": cosine, "likeness of classes": likeness}.items():
        arms = {name: torch.tensor(values) for name, values in table.items()}
        apart = {name: minus(arms["nearest"], arms[name], places) for name in names[1:]}
        apart["blind less any"] = minus(arms["drawn blindly"], arms["of any concept"], places)
        result[title] = means(arms) | {"apart": apart}
    return result


def _draw(rows: list[int], generator: torch.Generator) -> list[int]:
    return [rows[n] for n in torch.randperm(len(rows), generator=generator)[:MEMBERS].tolist()]


def shuffled(network: Network, part: str, seed: int) -> Network:
    """A network whose parameters in one part are permuted, each tensor by itself."""
    model = copy.deepcopy(network.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.get_submodule(part).parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return Network(model, network.name, "shuffled", network.device, input_size=network.input_size)


def _apart(run: Run, network: Network, block: str, stage: str) -> dict[str, Any]:
    """How alike relevance for the class is where weights above a block are shuffled."""
    images, labels = run.evaluated(SHUFFLED_PICTURES)
    # Codes of the network that saw them: only what lies above the block differs.
    d = decompose(run.network, images, {block: run.concepts(block)})
    relevance = (
        attribute(
            replace(d, network=net), block, [[label] for label in labels],
            tolerance=run.profile.gap, batch_size=run.profile.batch_size,
        )[:, 0].cpu()
        for net in (run.network, network)
    )  # fmt: skip
    measured = []
    for u, *both in zip(d.codes[block].cpu(), *relevance, strict=True):
        own, other = (each[u.any(dim=0)] for each in both)
        first = min(10, len(own))  # of the concepts that a picture uses
        common = {*own.topk(first).indices.tolist()} & {*other.topk(first).indices.tolist()}
        ranks = spearmanr(own, other), spearmanr(own.abs(), other.abs())
        measured.append([*(float(r.statistic) for r in ranks), len(common) / first])
    names = "signed", "absolute", "first ten in common"
    arms = dict(zip(names, torch.tensor(measured).T, strict=True))
    return {"control": "shuffled weights", "block": block, "down to": stage} | means(arms)

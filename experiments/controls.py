"""What should fall apart, and what should stay: weights, seeds, photographs, members."""

import copy
from dataclasses import asdict
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import Concepts, Network, class_relevance
from gig_helpers.clustering import rows_of
from gig_helpers.codes import load_codes
from gig_helpers.concepts import extract, nearest_concept
from gig_helpers.data.profiles import CHAIN
from gig_helpers.extractors import random_pfvs
from gig_helpers.report.statistics import compare, interval

from .run import Run, write

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
    blocks = [block for block in CHAIN if block in run.profile.blocks]
    rows = [row for block in blocks for row in _stability(run, block)]
    rows += [_members(run, block) for block in blocks]
    network = run.network
    for stage in STAGES:
        network = shuffled(network, stage, run.profile.seed)
        below = [block for block in blocks if block.split(".")[0] < stage or stage == "fc"]
        rows += [_apart(run, network, block, stage) for block in below]
        write(run, "controls", rows, pictures=SHUFFLED_PICTURES, alike=ALIKE, held_out=True)


def _stability(run: Run, block: str) -> list[dict[str, Any]]:
    """How near each concept is to one of another run's: another seed, other photographs, chance."""
    dataset, beta = run.dataset, run.network.bn_shift(block)
    kept = ~dataset.held_out(block)
    x = dataset.vectors(block)[kept].to(beta)
    half = (dataset.photographs[dataset.picture_ids(block)[kept]] // 4 % 2).bool()
    halved = run.profile.n_concepts(x.shape[1], int(half.sum()))
    one = extract(x[half], beta, halved)
    found = {
        "another seed": (run.concepts(block), run.concepts(block, seed=1)),
        "other photographs": (one, extract(x[~half], beta, halved)),
        "other photographs' PFVs, drawn blindly": (one, random_pfvs(x[~half], beta, halved)),
    }
    rows = []
    for name, (one, other) in found.items():
        nearest = _nearest(one, other)
        rows.append({
            "control": "stability", "block": block, "of": name, "k": len(one),
            "median": float(nearest.median()), "again": float((nearest > ALIKE).double().mean()),
        })  # fmt: skip
    return rows


def _nearest(one: Concepts, other: Concepts) -> Tensor:
    """Largest cosine (k,) of each concept with any of the others."""
    theirs = F.normalize(other.vectors, dim=1).T
    parts = F.normalize(one.vectors, dim=1).split(rows_of(theirs.shape[1]))
    return torch.cat([(part @ theirs).amax(dim=1) for part in parts]).cpu()


def _members(run: Run, block: str) -> dict[str, Any]:
    """Is what a concept's nearest PFVs show true of its others? Held out, one per photograph.

    By the cosine to the concept, and by how alike the PFVs' classes are: the cosine of their rows
    of the classifier, since hardly two of these photographs are of one class.
    """
    dataset, concepts = run.dataset, run.concepts(block)
    out = dataset.held_out(block)
    ids = dataset.picture_ids(block)[out]
    x = dataset.vectors(block)[out].to(concepts.beta)
    unit, centres = F.normalize(x - concepts.beta, dim=1), F.normalize(concepts.vectors, dim=1)
    owner = nearest_concept(x, concepts)
    order = (unit * centres[owner]).sum(dim=1).argsort(descending=True).cpu()
    photograph = dataset.photographs[ids].tolist()
    of_concept: dict[int, dict[int, int]] = {}
    for row, q in zip(order.tolist(), owner.cpu()[order].tolist(), strict=True):
        of_concept.setdefault(q, {}).setdefault(photograph[row], row)
    enough = {q: [*each.values()] for q, each in of_concept.items() if len(each) >= 2 * MEMBERS}
    one_each = [*dict(zip(photograph, range(len(ids)), strict=True)).values()]
    classes = F.normalize(run.network.class_vectors, dim=1)[dataset.predictions()[ids]]
    generator = torch.Generator().manual_seed(run.profile.seed)
    names = ("nearest", "drawn blindly", "of any concept")
    cosine, likeness = ({name: list[float]() for name in names} for _ in range(2))
    for q, rows in enough.items():
        # The blind draw is among the others: what the card does not show.
        some = rows[:MEMBERS], _draw(rows[MEMBERS:], generator), _draw(one_each, generator)
        for name, chosen in zip(names, some, strict=True):
            cosine[name].append(float((unit[chosen] @ centres[q]).mean()))
            one, other = classes[chosen][torch.triu_indices(MEMBERS, MEMBERS, 1)]
            likeness[name].append(float((one * other).sum(dim=1).mean()))
    tables = {"cosine": cosine, "likeness of classes": likeness}
    result: dict[str, Any] = {"control": "members", "block": block, "concepts": len(enough)}
    for title, table in tables.items():
        found = {name: torch.tensor(values) for name, values in table.items()}
        result[title] = {name: asdict(interval(values)) for name, values in found.items()}
        apart = {name: compare(found["nearest"], found[name]) for name in names[1:]}
        apart["blind less any"] = compare(found["drawn blindly"], found["of any concept"])
        result[title] |= {"apart": {name: asdict(test) for name, test in apart.items()}}
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
    concepts, found = run.concepts(block), list[list[float]]()
    for image, label in zip(*run.evaluated(SHUFFLED_PICTURES), strict=True):
        # Codes of the network that saw them: only what lies above the block differs.
        codes = load_codes(run.network, image[None], concepts)
        used = codes[0].any(dim=0)
        one, other = (
            class_relevance(
                net, codes, concepts.vectors, block, [label], beta=concepts.beta,
                tolerance=run.profile.gap, batch_size=run.profile.batch_size,
            )[0, 0, used]
            for net in (run.network, network)
        )  # fmt: skip
        first, second = (set(part.topk(10).indices.tolist()) for part in (one, other))
        ranks = spearmanr(one, other), spearmanr(one.abs(), other.abs())
        found.append([*(float(r.statistic) for r in ranks), len(first & second) / 10])
    names = "signed", "absolute", "first ten in common"
    measured = zip(names, torch.tensor(found).T, strict=True)
    return {"control": "shuffled weights", "block": block, "down to": stage} | {
        name: asdict(interval(values)) for name, values in measured
    }

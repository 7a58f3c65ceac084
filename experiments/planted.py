"""A shortcut that was planted, so that all is known of it, and a network without one (chapter 10).

Digits of one class bear a mark in a corner in nine pictures of ten when a network learns them; its
twin learns them without. Both meet digits that neither has seen, each with the mark and without.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from gig_helpers import (
    Concepts,
    Decomposition,
    Network,
    PFVDataset,
    attribute,
    decompose,
    fit_concepts,
    load_pictures,
    sample,
    suspects,
)
from gig_helpers.data import artifacts
from gig_helpers.data.pictures import Pictures
from gig_helpers.data.profiles import Profile
from gig_helpers.data.weights import Preprocessing
from gig_helpers.report.examples import localize, on_mask
from gig_helpers.report.statistics import interval

from .run import Run, mean, minus, write
from .shortcut import MARGIN

CLASS, SHARE, SIDE = 3, 0.9, 4
"""Digit that bears the mark in training; in how many of its pictures; the red square's side."""

TRAINED, LEARNT, HELD_OUT, LOCATED = 1000, 150, 200, 10
"""Digits for the network, for concepts, for the evaluation, and of these for localisation."""

SEEDS, STEPS, GAP = 3, (1, 2, 3), 0.1
"""Of networks, their concepts and random orders; families taken out; of relevance, as elsewhere."""

SIZES = Profile(per_image=8, pfvs_per_concept=20, families=8)
NAMES = "zero one two three four five six seven eight nine".split()
WIDTH = 16
READY = Preprocessing(size=WIDTH, resize=WIDTH, mean=(0.3,) * 3, std=(0.4,) * 3)


def convolutions() -> nn.Module:
    """Three convolutions without batch norm, chapter 9's."""
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(*layers[:-1], *head)


def transformer() -> nn.Module:
    """Three layers, which see a digit as 16 tokens and a class token, chapter 9's."""
    return VisionTransformer(16, 4, 3, 4, 48, 96, num_classes=10)


KINDS = {convolutions: (15, 3e-3), transformer: (30, 2e-3)}
"""Networks: rounds of training, and the learning rate."""


def make(_: Run) -> None:
    """Write ``planted.json``: what is right, and what becomes the class, by families taken out."""
    clean = _digits()
    order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))
    train, learnt, held, _ = order.split(
        [TRAINED, LEARNT, HELD_OUT, len(order) - TRAINED - LEARNT - HELD_OUT]
    )
    sides = {"marked": clean.changed(_mark), "clean": clean}
    rows = list[dict[str, Any]]()
    for make_network in KINDS:
        for planted in (True, False):
            seeds = []
            for seed in range(SEEDS):
                network = _learn(make_network, sides, train, seed if planted else None, seed)
                seeds.append(dict(_blocks(network, sides, learnt, held, seed)))
            for block in seeds[0]:
                row = {"network": make_network.__name__, "planted": planted, "block": block}
                rows.append(row | _summed([of[block] for of in seeds]))
    own = Run(SIZES, network, clean)
    write(own, "planted", rows, evaluated=len(held), seeds=SEEDS, mark=(SIDE / WIDTH) ** 2)


def _mark(image: Image.Image) -> Image.Image:
    marked = image.copy()
    marked.paste((255, 0, 0), (0, 0, SIDE, SIDE))
    return marked


def _digits() -> Pictures:
    """scikit-learn's digits, as pictures of 16 × 16 in a folder for each class."""
    folder, digits = artifacts.folder() / "planted-digits", load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / NAMES[label] / f"{i:04}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image * 15.9).astype(np.uint8))
        grey.resize((16, 16), Image.Resampling.BICUBIC).convert("RGB").save(place)
    return load_pictures(str(folder), preprocessing=READY, classes=NAMES)


def _learn(
    make_network: Any, sides: dict[str, Pictures], train: Tensor, planted: int | None, seed: int
) -> Network:  # fmt: skip
    x, marked = (sides[side][train.tolist()] for side in ("clean", "marked"))
    y = torch.tensor(sides["clean"].labels)[train]
    if planted is not None:
        drawn = torch.rand(len(y), generator=torch.Generator().manual_seed(planted))
        bears = (y == CLASS) & (drawn < SHARE)
        x = torch.where(bears[:, None, None, None], marked, x)
    rounds, rate = KINDS[make_network]
    torch.manual_seed(seed)
    model = make_network().train()
    optimiser = torch.optim.AdamW(model.parameters(), rate)
    for _ in range(rounds):
        for part in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimiser.step()
    options: Any = {"input_size": (16, 16), "classes": NAMES, "preprocessing": READY}
    return Network(model, make_network.__name__, "trained here", **options)


def _blocks(
    network: Network, sides: dict[str, Pictures], learnt: Tensor, held: Tensor, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Of every block what its suspects are, and what follows if they are taken out."""
    half = len(learnt) // 2  # of a folder of which nobody says which digits bear the mark
    folder = sides["marked"].subset(learnt[:half].tolist())
    folder = folder.joined(sides["clean"].subset(learnt[half:].tolist()))
    sizes = replace(SIZES, seed=seed)
    pfvs = sample(network, folder, sizes)
    for block, here in fit_concepts(pfvs, sizes).items():
        yield block, _block(network, pfvs, here, sides, held, seed)


def _block(
    network: Network, pfvs: PFVDataset, here: Concepts, sides: dict[str, Pictures], held: Tensor,
    seed: int,
) -> dict[str, Any]:  # fmt: skip
    block, wrong = here.block, pfvs.wrong()
    true = [int(pfvs.pictures.labels[i] or 0) for i in wrong]
    asked = decompose(network, pfvs.pictures[wrong], {block: here})
    table = suspects(asked, block, true, tolerance=GAP)
    orders = {"suspects": table.index.tolist()}
    for by in ("activation", "random"):
        values = attribute(asked, block, CLASS, method=by, seed=seed)[:, 0].mean(dim=0)
        orders[by] = values.argsort(descending=True).tolist()
    labels = torch.tensor(sides["clean"].labels)[held]
    wet, dry = (decompose(network, of[held.tolist()], {block: here}) for of in sides.values())
    said = {"nothing": (wet.logits(), dry.logits())}
    for by, order in orders.items():
        for n in STEPS:
            said[f"{by}, {n}"] = wet.logits({block: order[:n]}), dry.logits({block: order[:n]})
    for n in STEPS:
        repaired = network.without(block, here.directions[orders["suspects"][:n]], here.beta)
        said[f"projection, {n}"] = repaired(wet.images), repaired(dry.images)
    answers = {name: [of.argmax(dim=1).cpu() for of in both] for name, both in said.items()}
    outcomes = {
        name: {
            "right": marked == labels,
            "became": (marked == CLASS)[labels != CLASS],
            "clean": clean == labels,
        }
        for name, (marked, clean) in answers.items()
    }
    names = {
        "mistakes": len(wrong),
        "called so": int((asked.logits().argmax(dim=1).cpu() == CLASS).sum()),
        "share": round(float(table["share"].iloc[0]), 4),
        "classes": int(table["classes"].iloc[0]),
    }
    mass = _mass(wet[range(LOCATED)], dry.images[:LOCATED], block, table.index[0])
    return {"outcomes": outcomes, "suspect": names, "mass": mass}


def _mass(wet: Decomposition, clean: Tensor, block: str, family: int) -> Tensor:
    """Share on the mark of what a family brings to the class, of each digit; 0 where none."""
    options: dict[str, Any] = {"tolerance": GAP, "positions": True}
    brought = attribute(wet, block, CLASS, **options)[:, 0, :, family]
    pairs = zip(wet.images, brought, strict=True)
    maps = torch.stack([localize(wet.network, image[None], block, of) for image, of in pairs])
    mass, _ = on_mask(maps.cpu(), (wet.images != clean).any(dim=1).cpu())
    return mass.nan_to_num(0.0)


def _summed(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of each digit, their intervals over digits, and paired differences."""
    means, outcomes = dict[str, dict[str, Tensor]](), dict[str, dict[str, Any]]()
    for name, kinds in seeds[0]["outcomes"].items():
        each = {what: torch.stack([of["outcomes"][name][what] for of in seeds]) for what in kinds}
        means[name] = {what: of.double().mean(dim=0) for what, of in each.items()}
        outcomes[name] = {what: _recorded(of.double()) for what, of in each.items()}
    three, untouched, places = means["suspects, 3"], means["nothing"], 3 * len(KINDS)
    tests = {
        name: minus(three["right"], means[other]["right"], places)
        for name, other in {"nothing": "nothing", "activation": "activation, 3",
                            "random": "random, 3"}.items()
    }  # fmt: skip
    tests["nine tenths of the clean"] = minus(three["right"], 0.9 * untouched["clean"], places)
    tests["clean, within the margin"] = minus(three["clean"], untouched["clean"] - MARGIN, places)
    mass = torch.stack([of["mass"] for of in seeds]).mean(dim=0)
    return {
        "outcomes": outcomes,
        "minus": tests,
        "suspects": [of["suspect"] for of in seeds],
        "mass": mean(mass),
        "mass_minus_area": minus(mass, torch.full_like(mass, (SIDE / WIDTH) ** 2), places),
    }


def _recorded(values: Tensor) -> dict[str, Any]:
    """Of values (seeds, N), zeros and ones: the mean's interval over digits, and each."""
    each = ["".join(f"{value:.0f}" for value in of) for of in values]
    return asdict(interval(values.mean(dim=0))) | {"each": each}

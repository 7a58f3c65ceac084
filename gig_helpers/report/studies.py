"""Curves of many pictures by several methods (section 4.2), each picture kept on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import codes as codes_module
from .. import curves as curves_module
from .. import gig as gig_module
from .. import importance as importance_module
from .. import network as network_module
from ..codes import load_codes, reconstruct
from ..concepts import Concepts
from ..curves import SCORES, Curves, class_curves, interlayer_curves
from ..data import artifacts
from ..data.pictures import Pictures
from ..data.profiles import Profile
from ..gig import as_maps
from ..importance import class_importance, interlayer_importance
from ..network import Network
from ..pfv import PFVDataset

_CODE = (network_module, codes_module, gig_module, importance_module, curves_module)


def evaluated(pictures: Pictures, dataset: PFVDataset, count: int) -> list[int]:
    """Which pictures are evaluated (section 4.2): some that the network gets right, spread evenly.

    One a photograph, spread over the photographs; where there are too few of these, other views
    of them come after.

    Parameters
    ----------
    count
        How many, at most.

    Returns
    -------
    list
        Indices of the pictures.

    Raises
    ------
    ValueError
        If the network gets none right: curves need a class to begin with.
    """
    right = seen_right(pictures, dataset)
    if not right:
        raise ValueError(f"the network gets no picture of {pictures.name} right: label some")
    first = {int(dataset.photographs[i]): i for i in reversed(right)}.values()
    spread = sorted(first)
    if len(spread) < count:
        spread += [i for i in right if i not in set(first)]
        return spread[:count]
    return [spread[i * len(spread) // count] for i in range(count)]


def seen_right(pictures: Pictures, dataset: PFVDataset) -> list[int]:
    """Indices of the pictures whose label is what the network says."""
    predictions = dataset.predictions().tolist()
    return [i for i, label in enumerate(pictures.labels) if label == predictions[i]]


@dataclass(frozen=True)
class Study:
    """Curves of N pictures by several methods (section 4.2).

    Attributes
    ----------
    curves
        By method: of a class study ``{score: Curves}`` of (N, S); of an interlayer study Curves of
        (N, T, S), for T target concepts a picture.
    importance
        ``{method: (N, T, k)}``; T is 1 in a class study.
    targets
        Of an interlayer study: numbers (N, T) of the later block's concepts.
    """

    curves: dict[str, Any]
    importance: dict[str, Tensor]
    targets: Tensor | None = None


def class_study(
    network: Network, images: Tensor, classes: Tensor | Sequence[int], concepts: Concepts,
    methods: Sequence[str], profile: Profile,
) -> Study:  # fmt: skip
    """C-deletion and C-insertion of many pictures at one block; what is on disk is not run again.

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    classes
        (N,), the network's predictions for them.
    methods
        Some of :data:`gig_helpers.importance.METHODS`.
    profile
        Its points, evaluation steps, seed and batch size.

    Raises
    ------
    ValueError
        If there is not one class a picture, or a method is unknown.
    """
    pairs = zip(images, _labels(classes, images), strict=True)
    rows = [
        {m: _class_curves(network, image, label, concepts, m, *_sizes(profile, n)) for m in methods}
        for n, (image, label) in enumerate(pairs)
    ]
    found = {m: _joined([row[m] for row in rows]) for m in methods}
    curves = {
        m: {s: Curves(f["x"], f[f"deletion/{s}"], f[f"insertion/{s}"]) for s in SCORES}
        for m, f in found.items()
    }
    return Study(curves, {m: f["importance"] for m, f in found.items()})


@artifacts.cached("class-study", *_CODE, ignore=("batch_size",))
def _class_curves(
    network: Network, image: Tensor, label: int, concepts: Concepts, method: str, points: int,
    steps: int, seed: int, batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    u, sizes = load_codes(network, image[None], concepts), {"batch_size": batch_size}
    scores = class_importance(
        method, network, u, concepts, [label], seed=seed, points=points, **sizes
    )
    found = class_curves(network, u, concepts, scores[:, 0], [label], steps=steps, **sizes)
    parts = {"x": found[SCORES[0]].x, "importance": scores}
    for score, one in found.items():
        parts |= {f"deletion/{score}": one.deletion, f"insertion/{score}": one.insertion}
    return parts


def interlayer_study(
    network: Network, images: Tensor, classes: Tensor | Sequence[int], source: Concepts,
    target: Concepts, methods: Sequence[str], profile: Profile,
) -> Study:  # fmt: skip
    """Interlayer deletion and insertion of many pictures between two blocks, as in Figure 5.

    A picture's targets are the concepts of the later block with the largest relevance for its
    class (eq. 7), among those with a positive code somewhere and a positive projection there: of
    a concept that is present only negatively there is no largest projection to lose.

    Parameters
    ----------
    images, classes, methods, profile
        As :func:`class_study`, with the profile's evaluation targets, T.

    Raises
    ------
    ValueError
        Also if a picture has fewer such targets.
    """
    count, chosen, rows = profile.evaluation_targets, [], []
    for n, (image, label) in enumerate(zip(images, _labels(classes, images), strict=True)):
        sizes = _sizes(profile, n)
        best = _targets(network, image, label, source, target, count, sizes[0], sizes[-1])
        given = (network, image, source, target, best["targets"][0])
        rows.append({m: _interlayer_curves(*given, m, *sizes) for m in methods})
        chosen.append(best)
    found = {m: _joined([row[m] for row in rows]) for m in methods}
    curves = {m: Curves(f["x"], f["deletion"], f["insertion"]) for m, f in found.items()}
    targets = _joined(chosen)["targets"]
    return Study(curves, {m: f["importance"] for m, f in found.items()}, targets)


@artifacts.cached("targets", *_CODE, ignore=("batch_size",))
def _targets(
    network: Network, image: Tensor, label: int, source: Concepts, target: Concepts, count: int,
    points: int, batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    u, codes = (load_codes(network, image[None], here) for here in (source, target))
    relevance = class_importance(
        "gig", network, codes, target, [label], points=points, batch_size=batch_size
    )[0, 0]
    with torch.no_grad():
        w = network.propagate(as_maps(reconstruct(u, source)), source.block, target.block)
    projected = F.normalize(target.vectors, dim=1) @ w[0].flatten(1)
    present = (projected.amax(1) > 0) & (codes[0] > 0).any(0)
    if (have := int(present.sum())) < count:
        raise ValueError(f"a picture has {have} targets at {target.block}, not {count}")
    return {"targets": relevance.masked_fill(~present, -torch.inf).topk(count).indices[None]}


@artifacts.cached("interlayer-study", *_CODE, ignore=("batch_size",))
def _interlayer_curves(
    network: Network, image: Tensor, source: Concepts, target: Concepts, chosen: Tensor,
    method: str, points: int, steps: int, seed: int, batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    u = load_codes(network, image[None], source)
    vectors = target.vectors[chosen.to(target.vectors.device)]
    given = (network, u, source, target.block)
    scores = interlayer_importance(
        method, *given, vectors, seed=seed, points=points, batch_size=batch_size
    )
    parts = [
        interlayer_curves(*given, vector, scores[:, t], steps=steps, batch_size=batch_size)
        for t, vector in enumerate(vectors)
    ]
    ways = {
        way: torch.stack([getattr(p, way) for p in parts], 1) for way in ("deletion", "insertion")
    }
    return {"x": parts[0].x, "importance": scores, **ways}


def _sizes(profile: Profile, n: int) -> tuple[int, int, int, int]:
    """Points, steps, seed and batch size of a picture."""
    return profile.points, profile.evaluation_steps, profile.seed + n, profile.batch_size


def _labels(classes: Tensor | Sequence[int], images: Tensor) -> list[Any]:
    labels = torch.as_tensor(classes).tolist()
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} classes for {len(images)} pictures")
    return labels


def _joined(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of all pictures; ``x`` is the same in each."""
    return {n: rows[0][n] if n == "x" else torch.cat([row[n] for row in rows]) for n in rows[0]}

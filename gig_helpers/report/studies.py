"""Curves of many pictures by several methods (section 4.2), each picture kept on disk."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import codes as codes_module
from .. import curves as curves_module
from .. import gig as gig_module
from .. import importance as importance_module
from .. import network as network_module
from .. import traced
from ..codes import load_codes, reconstruct
from ..concepts import Concepts
from ..curves import SCORES, Curve, Curves, class_curves, interlayer_curves, stacked
from ..data import artifacts
from ..data.pictures import Pictures
from ..data.profiles import Profile
from ..importance import class_importance, interlayer_importance
from ..network import Network
from ..pfv import PFVDataset

WRONG_TARGET = "wrong target"
"""A control among a study's orders: GIG's for another target.

Of a class study another picture's class, of an interlayer study another of the picture's concepts.
"""

_WAYS, _PARTS = ("deletion", "insertion"), ("x", "y", "bracket")
_CODE = (traced, network_module, codes_module, gig_module, importance_module, curves_module)


def evaluated(
    pictures: Pictures, dataset: PFVDataset, count: int, among: Container[int] | None = None
) -> list[int]:
    """Which pictures are evaluated (section 4.2): some that the network gets right, spread evenly.

    One per photograph, spread over the photographs; where there are too few of these, other views
    of them come after.

    Parameters
    ----------
    count
        How many, at most.
    among
        Indices of the pictures that may be chosen, such as those that made no concept.

    Returns
    -------
    list
        Indices of the pictures.

    Raises
    ------
    ValueError
        If the network gets none right: curves need a class to begin with.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> pictures = SimpleNamespace(name="four", labels=(7, 7, 8, None))
    >>> dataset = SimpleNamespace(
    ...     predictions=lambda: torch.tensor([7, 7, 9, 7]), photographs=torch.tensor([0, 0, 1, 2])
    ... )
    >>> evaluated(pictures, dataset, 1), evaluated(pictures, dataset, 2)
    ([0], [0, 1])
    """
    right = [i for i in seen_right(pictures, dataset) if among is None or i in among]
    if not right:
        raise ValueError(f"the network gets no picture of {pictures.name} right: label some")
    first = {int(dataset.photographs[i]): i for i in reversed(right)}.values()
    spread = sorted(first)
    if len(spread) < count:
        spread += [i for i in right if i not in set(first)]
        return spread[:count]
    return [spread[i * len(spread) // count] for i in range(count)]


def seen_right(pictures: Pictures, dataset: PFVDataset) -> list[int]:
    """Indices of the pictures whose label is what the network says.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> dataset = SimpleNamespace(predictions=lambda: torch.tensor([7, 9, 7]))
    >>> seen_right(SimpleNamespace(labels=(7, 8, None)), dataset)
    [0]
    """
    predictions = dataset.predictions().tolist()
    return [i for i, label in enumerate(pictures.labels) if label == predictions[i]]


@dataclass(frozen=True)
class Study:
    """Curves of N pictures by several methods (section 4.2).

    Attributes
    ----------
    curves
        By method: of a class study ``{score: Curves}`` of (N, S); of an interlayer study Curves of
        (N, T, S), for T target concepts per picture.
    importance
        ``{method: (N, T, k)}``; T is 1 in a class study.
    gaps
        ``{method: (N, T)}``: completeness gap, the importances' sum less the target's change
        between no concepts and all, as a share of that change. Of "gig" it is the error of the
        quadrature; of "gradient" what the path adds; of others it means nothing.
    targets
        Of an interlayer study: numbers (N, T) of the later block's concepts.

    Examples
    --------
    >>> study = Study({}, {"gig": torch.tensor([[[2.0, 1.0]]])}, {"gig": torch.tensor([[0.004]])})
    >>> bool((study.gaps["gig"] < 0.01).all())
    True
    """

    curves: dict[str, Any]
    importance: dict[str, Tensor]
    gaps: dict[str, Tensor]
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
        Some of :data:`gig_helpers.importance.METHODS`, and :data:`WRONG_TARGET`: the class of the
        next picture that has another. Those of a picture are run together, since their orders have
        states in common.
    profile
        Its gap, bracket, seed and batch size.

    Raises
    ------
    ValueError
        If there is not one class per picture, a method is unknown, or no picture has another class.

    Examples
    --------
    >>> import os, tempfile
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
    >>> beta = network.bn_shift(block)
    >>> concepts = Concepts(torch.eye(512)[:3], beta, torch.arange(3), block, lam=0.5)
    >>> profile = Profile("mine", 1, 8, 1)
    >>> with tempfile.TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     study = class_study(
    ...         network, torch.ones(1, 3, 64, 64), [4], concepts, ["gig", "random"], profile
    ...     )
    >>> study.curves["random"]["logit"].auc()[0].shape, study.importance["gig"].shape
    (torch.Size([1]), torch.Size([1, 1, 3]))
    """
    labels, rows = _labels(classes, images), []
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        another = label
        if WRONG_TARGET in methods:
            another = next((c for c in labels[n:] + labels[:n] if c != label), label)
            if another == label:
                raise ValueError(f"{WRONG_TARGET!r} takes pictures of two classes or more")
        given = network, image, label, another, concepts
        rows.append(_class_curves(*given, tuple(methods), *_sizes(profile, n)))
    curves = {score: _unpacked(rows, score) for score in SCORES}
    each = {m: {s: curves[s][:, i] for s in SCORES} for i, m in enumerate(methods)}
    return Study(each, *_by_method(rows, methods))


@artifacts.cached("class-study", *_CODE, ignore=("batch_size",))
def _class_curves(
    network: Network, image: Tensor, label: int, another: int, concepts: Concepts,
    methods: tuple[str, ...], gap: float, bracket: float, seed: int, batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    u = load_codes(network, image[None], concepts)
    options: dict[str, Any] = {"seed": seed, "tolerance": gap, "batch_size": batch_size}
    asked = [("gig", another) if m == WRONG_TARGET else (m, label) for m in methods]
    importance = torch.stack(
        [class_importance(m, network, u, concepts, [c], **options)[0] for m, c in asked]
    )
    found = class_curves(
        network,
        u,
        concepts,
        importance[None, :, 0],
        [label],
        tolerance=bracket,
        batch_size=batch_size,
    )
    logit = found["logit"].insertion.y[0, :, [0, -1]]
    parts = {"importance": importance, "gaps": _gap(importance, logit[:, 1:] - logit[:, :1])}
    for score, one in found.items():
        parts |= _packed(score, one[0])
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
        As :func:`class_study`, with the profile's evaluation targets, T. After "gig" the methods
        may also name :data:`WRONG_TARGET`.

    Raises
    ------
    ValueError
        Also if a picture has fewer such targets.

    Examples
    --------
    >>> import os, tempfile
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> network, image = Network(resnet18(num_classes=5), device="cpu"), torch.ones(1, 3, 64, 64)
    >>> profile, blocks = Profile("mine", 1, 8, 1, evaluation_targets=1), ("layer4.0", "layer4.1")
    >>> source, target = (
    ...     Concepts(x[0].flatten(1).T.clone(), 0 * x[0, :, 0, 0], torch.arange(4), block, lam=0.1)
    ...     for block, x in network.preactivations(image, blocks).items()
    ... )
    >>> with tempfile.TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     study = interlayer_study(network, image, [4], source, target, ["gig"], profile)
    >>> round(study.curves["gig"].insertion.y[0, 0, -1].item(), 4)  # all concepts are there
    1.0
    """
    count, chosen, rows = profile.evaluation_targets, [], []
    for n, (image, label) in enumerate(zip(images, _labels(classes, images), strict=True)):
        gap, bracket, seed, size = _sizes(profile, n)
        best = _targets(network, image, label, source, target, count, gap, size)
        chosen.append(best["targets"])
        if methods:
            given = network, image, source, target, best["targets"], best["change"]
            rows.append(_interlayer_curves(*given, tuple(methods), gap, bracket, seed, size))
    curves = _unpacked(rows, "score") if methods else None
    each = {method: curves[:, i] for i, method in enumerate(methods) if curves}
    return Study(each, *_by_method(rows, methods), torch.stack(chosen))


@artifacts.cached("targets", *_CODE, ignore=("batch_size",))
def _targets(
    network: Network, image: Tensor, label: int, source: Concepts, target: Concepts, count: int,
    gap: float, batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    """A picture's targets (T,), and how the sums of their projections change (T,)."""  # noqa: DOC501
    u, codes = (load_codes(network, image[None], here) for here in (source, target))
    relevance = class_importance(
        "gig", network, codes, target, [label], tolerance=gap, batch_size=batch_size
    )[0, 0]
    ends = reconstruct(torch.cat([0 * u, u]), source)
    with torch.no_grad():
        w = network.propagate(network.arranged(ends, source.block), source.block, target.block)
    projected = F.normalize(target.vectors, dim=1) @ network.positions(w, target.block).mT
    present = (projected[1].amax(1) > 0) & (codes[0] > 0).any(0)
    if (have := int(present.sum())) < count:
        raise ValueError(f"a picture has {have} targets at {target.block}, not {count}")
    best = relevance.masked_fill(~present, -torch.inf).topk(count).indices
    return {"targets": best, "change": projected.sum(dim=2).diff(dim=0)[0, best]}


@artifacts.cached("interlayer-study", *_CODE, ignore=("batch_size",))
def _interlayer_curves(
    network: Network, image: Tensor, source: Concepts, target: Concepts, chosen: Tensor,
    change: Tensor, methods: tuple[str, ...], gap: float, bracket: float, seed: int,
    batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    u = load_codes(network, image[None], source)
    vectors = target.vectors[chosen]
    given = (network, u, source, target.block)
    options: dict[str, Any] = {"seed": seed, "tolerance": gap, "batch_size": batch_size}
    rows = dict[str, Tensor]()
    for m in methods:
        if m == WRONG_TARGET:
            rows[m] = rows["gig"].roll(1, dims=0)
        else:
            rows[m] = interlayer_importance(m, *given, vectors, **options)[0]
    importance = torch.stack(list(rows.values()))
    found = interlayer_curves(
        *given, vectors, importance[None], tolerance=bracket, batch_size=batch_size
    )
    parts = {"importance": importance, "gaps": _gap(importance, change)}
    return parts | _packed("score", found[0])


def _gap(importance: Tensor, change: Tensor) -> Tensor:
    total = importance.sum(dim=-1)
    return (total - change.to(total)).abs() / change.abs().to(total)


def _packed(name: str, curves: Curves) -> dict[str, Tensor]:
    return {
        f"{name}/{way}/{part}": getattr(getattr(curves, way), part)
        for way, part in product(_WAYS, _PARTS)
    }


def _unpacked(rows: list[dict[str, Tensor]], name: str) -> Curves:
    """Curves (N, M, ..., S) of all pictures."""
    return Curves(*(
        stacked(Curve(*(row[f"{name}/{way}/{part}"] for part in _PARTS)) for row in rows)
        for way in _WAYS
    ))  # fmt: skip


def _by_method(
    rows: list[dict[str, Tensor]], methods: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Importance (N, T, k) and gaps (N, T) of each method."""
    importance, gaps = (
        {m: torch.stack([row[name][i] for row in rows]) for i, m in enumerate(methods)}
        for name in ("importance", "gaps")
    )
    return importance, gaps


def _sizes(profile: Profile, n: int) -> tuple[float, float, int, int]:
    """Gap, bracket, seed and batch size of a picture."""
    return profile.gap, profile.bracket, profile.seed + n, profile.batch_size


def _labels(classes: Tensor | Sequence[int], images: Tensor) -> list[Any]:
    labels = torch.as_tensor(classes).tolist()
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} classes for {len(images)} pictures")
    return labels

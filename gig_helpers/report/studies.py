"""Curves of many pictures by several methods (section 4.2), each picture kept on disk."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from ..codes import Decomposition
from ..curves import Curve, Curves, deletion_insertion, stacked
from ..data import artifacts
from ..data.profiles import Profile
from ..gig import choice
from ..importance import METHODS, Method, Target, attribute, question
from ..pfv import PFVDataset

WRONG_TARGET = "wrong target"
"""A control among a study's orders: GIG's for another target.

Of a class the one of the next picture that has another, or, where all have the same, what the
network would say instead; of concepts another of the picture's own.
"""

_WAYS, _PARTS = ("deletion", "insertion"), ("x", "y", "bracket")


def evaluated(pfvs: PFVDataset, count: int, among: Container[int] | None = None) -> list[int]:
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
    >>> pfvs = SimpleNamespace(right=lambda: [0, 1], photographs=torch.tensor([0, 0, 1, 2]))
    >>> evaluated(pfvs, 1), evaluated(pfvs, 2)
    ([0], [0, 1])
    """
    right = [i for i in pfvs.right() if among is None or i in among]
    if not right:
        name = pfvs.pictures.name
        raise ValueError(f"the network gets no picture of {name} right: label some")
    first = {int(pfvs.photographs[i]): i for i in reversed(right)}.values()
    spread = sorted(first)
    if len(spread) < count:
        spread += [i for i in right if i not in set(first)]
        return spread[:count]
    return [spread[i * len(spread) // count] for i in range(count)]


@dataclass(frozen=True)
class Study:
    """Curves of N pictures and T targets of each by several methods (section 4.2).

    Attributes
    ----------
    curves
        ``{method: {score: Curves (N, T, S)}}``; see :func:`gig_helpers.curves.deletion_insertion`.
    importance
        ``{method: (N, T, k)}``
    gaps
        ``{method: (N, T)}``: completeness gap, the importances' sum less the target's change
        between no concepts and all, as a share of that change. Of "gig" it is the error of the
        quadrature; of "gradient" what the path adds; of others it means nothing.

    Examples
    --------
    >>> study = Study({}, {"gig": torch.tensor([[[2.0, 1.0]]])}, {"gig": torch.tensor([[0.004]])})
    >>> bool((study.gaps["gig"] < 0.01).all())
    True
    """

    curves: dict[str, dict[str, Curves]]
    importance: dict[str, Tensor]
    gaps: dict[str, Tensor]


def study(
    d: Decomposition, source: str, target: Target, methods: Sequence[str], profile: Profile
) -> Study:  # fmt: skip
    """Deletion and insertion of many pictures by several orders; what is on disk is not run again.

    Parameters
    ----------
    source, target
        As in :func:`.attribute`; of classes (N, 1), those that the network says.
    methods
        Some of :data:`gig_helpers.importance.METHODS`, and :data:`WRONG_TARGET`. Those of a picture
        are run together, since their orders have states in common.
    profile
        Its gap, bracket, seed and batch size.

    Raises
    ------
    ValueError
        If a method is unknown, or there is no wrong target to take.

    Examples
    --------
    >>> import os, tempfile
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Concepts, Network
    >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
    >>> beta, codes = network.bn_shift(block), torch.ones(1, 4, 3)
    >>> concepts = Concepts(torch.eye(512)[:3], beta, torch.arange(3), block, lam=0.5)
    >>> d = Decomposition(network, torch.ones(1, 3, 64, 64), {block: concepts}, {block: codes})
    >>> with tempfile.TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     made = study(d, block, [[4]], ["gig", "random"], Profile())
    >>> made.curves["random"]["logit"].auc()[0].shape, made.importance["gig"].shape
    (torch.Size([1, 1]), torch.Size([1, 1, 3]))
    """
    for name in methods:
        choice(name, "method", *METHODS, WRONG_TARGET)
    asked = question(d, source, target)
    own, later = asked.targets.cpu(), asked.later
    wrong = _wrong(d, own, later) if WRONG_TARGET in methods else own
    orders = [METHODS["gig" if name == WRONG_TARGET else name] for name in methods]
    place = [name == WRONG_TARGET for name in methods]
    some = d.at(source) if later is None else d.at(source, later)
    rows = [
        _curves(
            some[[n]], source, later, own[[n]], wrong[[n]], orders, place, profile.gap,
            profile.bracket, profile.seed + n, profile.batch_size,
        )
        for n in range(len(d))
    ]  # fmt: skip
    scores = dict.fromkeys(key.split("/")[0] for key in rows[0] if "/" in key)
    curves = {score: _unpacked(rows, score) for score in scores}
    importance, gaps = (
        {m: torch.stack([row[part][i] for row in rows]) for i, m in enumerate(methods)}
        for part in ("importance", "gaps")
    )
    each = {m: {s: every[:, i] for s, every in curves.items()} for i, m in enumerate(methods)}
    return Study(each, importance, gaps)


def _wrong(d: Decomposition, own: Tensor, later: str | None) -> Tensor:
    """Another target (N, T) in place of each."""  # noqa: DOC501
    if later is not None or own.shape[1] > 1:
        wrong = own.roll(1, dims=1)
    else:
        labels, likely = own[:, 0].tolist(), d.logits().argsort(dim=1, descending=True).tolist()
        rows = (labels[n:] + labels[:n] + likely[n][:2] for n in range(len(own)))
        others = ((c for c in row if c != own[n]) for n, row in enumerate(rows))
        wrong = torch.tensor([[next(rest, own[n])] for n, rest in enumerate(others)])
    if (wrong == own).any():
        raise ValueError(f"{WRONG_TARGET!r} takes two targets or more")
    return wrong


@artifacts.cached("study", ignore=("batch_size",))
def _curves(
    d: Decomposition, source: str, later: str | None, own: Tensor, wrong: Tensor,
    orders: Sequence[Method], misled: Sequence[bool], gap: float, bracket: float, seed: int,
    batch_size: int,
) -> dict[str, Tensor]:  # fmt: skip
    def aim(numbers: Tensor) -> Target:
        return numbers if later is None else (later, numbers)

    options = {"tolerance": gap}
    asked = [question(d, source, aim(t), seed, batch_size, options) for t in (own, wrong)]
    by_own = cache(lambda order: order(asked[0]))
    # Several wrong targets are the picture's own ones, each in place of another.
    same = wrong[0, :, None] == own[0]

    def by(order: Method, lost: bool) -> Tensor:
        if lost and not same.any():
            return order(asked[1])
        return by_own(order)[:, same.int().argmax(dim=1)] if lost else by_own(order)

    importance = torch.stack([by(*each) for each in zip(orders, misled, strict=True)], dim=1)
    curves = deletion_insertion(
        d, source, aim(own), importance, tolerance=bracket, batch_size=batch_size
    )
    u, here = d.codes[source], d.concepts[source]
    with torch.no_grad():
        none, whole = asked[0].respond(here.decode(torch.cat([0 * u, u])))
    change = asked[0].directions[0] @ (whole - none)
    missed = (importance[0].sum(dim=-1) - change).abs() / change.abs()
    parts = {"importance": importance[0], "gaps": missed}
    for score, curve in curves.items():
        parts |= {
            f"{score}/{way}/{part}": getattr(getattr(curve[0], way), part)
            for way, part in product(_WAYS, _PARTS)
        }
    return parts


def _unpacked(rows: list[dict[str, Tensor]], score: str) -> Curves:
    """Curves (N, M, T, S) of all pictures."""
    return Curves(*(
        stacked(Curve(*(row[f"{score}/{way}/{part}"] for part in _PARTS)) for row in rows)
        for way in _WAYS
    ))  # fmt: skip


def present_targets(
    d: Decomposition, source: str, later: str, classes: Sequence[int], profile: Profile
) -> Tensor:
    """Each picture's most relevant concepts (N, T) of a later block, for Figure 5 (section 4.2.3).

    Those with the largest relevance for its class (eq. 7) among the concepts with a positive code
    somewhere and, from the reconstruction of the source, a positive projection: of a concept that
    is present only negatively there is no largest projection to lose.

    Parameters
    ----------
    classes
        (N,), such as the network's predictions.
    profile
        Its gap, evaluation targets T and batch size.

    Raises
    ------
    ValueError
        If a picture has fewer.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Concepts, Network
    >>> network, image = Network(resnet18(num_classes=5), device="cpu"), torch.ones(1, 3, 64, 64)
    >>> concepts, codes = {}, {}
    >>> for block, x in network.preactivations(image, ("layer4.0", "layer4.1")).items():
    ...     rows = network.positions(x, block)[0]
    ...     concepts[block] = Concepts(rows, 0 * rows[0], torch.arange(4), block)
    ...     codes[block] = torch.eye(4)[None]
    >>> d = Decomposition(network, image, concepts, codes)
    >>> present_targets(d, "layer4.0", "layer4.1", [4], Profile(evaluation_targets=1)).shape
    torch.Size([1, 1])
    """
    count, chosen = profile.evaluation_targets, []
    target, segment = d.concepts[later], d.network.segment(source, later)
    units = F.normalize(target.directions, dim=1)
    for n, label in enumerate(classes):
        of_picture = d[[n]]
        with torch.no_grad():
            after = segment(of_picture.reconstruction(source))[0]
        codes = target.gathered(of_picture.codes[later][0])
        present = ((units @ after.T).amax(dim=1) > 0) & (codes > 0).any(dim=0)
        if (have := int(present.sum())) < count:
            raise ValueError(f"a picture has {have} targets at {later}, not {count}")
        relevance = attribute(
            of_picture, later, label, tolerance=profile.gap, batch_size=profile.batch_size
        )[0, 0]
        chosen.append(relevance.masked_fill(~present, -torch.inf).topk(count).indices)
    return torch.stack(chosen).cpu()

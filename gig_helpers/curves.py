"""Concepts taken out, concepts put in: deletion and insertion curves (sections 4.2.1 and 4.2.3).

A curve is found by halving: a few states are run, then those between neighbours whose scores differ
most, until the area is known well enough. Every choice that the paper leaves open is a named
argument; its default is the paper's reading. Functions treat each picture by itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .codes import Decomposition
from .concepts import Concepts
from .gig import choice
from .importance import Target, question

SCORES = ("agreement", "probability", "logit")
"""What is read off the class: is it still the prediction (1 or 0), its probability, its logit."""


@dataclass(frozen=True)
class Curve:
    """A score along the share of concepts, straight between the states that were run (section 4.2).

    Attributes
    ----------
    x, y
        Shares (..., S) from 0 to 1, and the scores there; short rows repeat their end.
    bracket
        (...,): the area lies within ± so much, if the curve is monotone between its points.

    Examples
    --------
    >>> curve = Curve(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, 0.0]), torch.zeros(()))
    >>> curve.area(), curve.at(torch.tensor([0.25]))
    (tensor(0.2500), tensor([0.5000]))
    >>> stacked([curve, curve]).mean(dim=0).y
    tensor([1., 0., 0.])
    """

    x: Tensor
    y: Tensor
    bracket: Tensor

    def __getitem__(self, index: Any) -> "Curve":
        """Some of the curves, by their leading dimensions."""
        return Curve(self.x[index], self.y[index], self.bracket[index])

    def area(self) -> Tensor:
        """Area (...,) under the curve: the trapezoid mean over x."""
        return torch.trapezoid(self.y, self.x)

    def at(self, shares: Tensor) -> Tensor:
        """Scores (..., G) at some shares (G,), interpolated."""
        rows = zip(*(part.reshape(-1, part.shape[-1]) for part in (self.x, self.y)), strict=True)
        scores = np.array([np.interp(shares, x, y) for x, y in rows])
        return torch.from_numpy(scores).to(self.y).reshape(*self.x.shape[:-1], len(shares))

    def mean(self, dim: int) -> "Curve":
        """Mean over one of the leading dimensions, such as a picture's targets."""
        x = self.x.unique()
        y = self.at(x).mean(dim=dim)
        return Curve(x.expand_as(y), y, self.bracket.mean(dim=dim))


@dataclass(frozen=True)
class Curves:
    """What is left while concepts are deleted, what is there while they are inserted (section 4.2).

    ``deletion`` and ``insertion`` are :class:`Curve` s of the same shape (..., S): the score after
    that share was removed from the reconstruction, or was put alone onto β.

    Examples
    --------
    >>> line = torch.tensor([0.0, 1.0])
    >>> falls, rises = (Curve(line, y, torch.tensor(0.0)) for y in (1 - line, line))
    >>> both = Curves(falls, rises)
    >>> both.auc(), both.gain()
    ((tensor(0.5000), tensor(0.5000)), tensor(0.))
    >>> pictures = Curves(*(stacked([curve, curve]) for curve in (falls, rises)))
    >>> pictures.mean(0).deletion.y.tolist(), pictures[torch.tensor([[0], [1]])].gain().shape
    ([1.0, 0.0], torch.Size([2, 1]))
    """

    deletion: Curve
    insertion: Curve

    def __getitem__(self, index: Any) -> "Curves":
        """Some of the curves, by their leading dimensions."""
        return Curves(self.deletion[index], self.insertion[index])

    def auc(self) -> tuple[Tensor, Tensor]:
        """Areas under the deletion and the insertion curves (...,)."""
        return self.deletion.area(), self.insertion.area()

    def gain(self) -> Tensor:
        """Area under insertion minus area under deletion (...,), as in the paper's Figure 4."""
        return self.insertion.area() - self.deletion.area()

    def mean(self, dim: int) -> "Curves":
        """Mean over one of the leading dimensions of (..., S)."""
        return Curves(self.deletion.mean(dim), self.insertion.mean(dim))


def always_on(codes: Tensor, share: float = 0.5) -> Tensor:
    """Which atoms (k,) have a coefficient in at least this share of all PFVs (..., k).

    To hold them in place is not in the paper; chapter 5 says why one may want to.

    Examples
    --------
    >>> always_on(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).tolist()
    [True, False]
    """
    return (codes != 0).flatten(0, -2).double().mean(dim=0) >= share


@torch.no_grad()
def deletion_insertion(
    d: Decomposition, source: str, target: Target, importance: Tensor, *,
    project: Callable[[Tensor, Tensor], Tensor] | None = None, residual: bool = False,
    reference: str = "reconstruction", tolerance: float = 0.01, axis: str = "all",
    held: Tensor | None = None, batch_size: int = 16,
) -> dict[str, Curves]:  # fmt: skip
    """Deletion and insertion of a block's concepts, for classes or later concepts (section 4.2).

    Parameters
    ----------
    source, target
        As in :func:`.attribute`; classes are those whose score is read off.
    importance
        (N, T, k) of T targets, such as :func:`.attribute` returns; the highest goes
        first. Or (N, M, T, k), of M methods: states that orders have in common are run once.
    project
        Of later concepts, what is scored, from PFVs of the later block and the target's unit
        vector: (B, P, C_b), (C_b,) → (B,). By default :func:`largest`, which takes the maximum anew
        in every state; ``lambda w, unit: largest(w - shift, unit)`` projects centred PFVs,
        ``lambda w, unit: w[:, i] @ unit`` stays at one position.
    residual
        Keep ε of eq. 1 in every state; the paper says nothing of it.
    reference
        Of later concepts, what has a score of 1: the ``"reconstruction"``, so that insertion ends
        there, or the ``"picture"``.
    tolerance
        Halving goes on until areas lie within ± so much, their curves taken as monotone
        between neighbouring states; 0 runs every state, one per concept. States without a change of
        codes are not run at all.
    axis
        ``"all"``: x counts all k concepts; ``"active"``: those with a coefficient in the picture.
    held
        (k,) booleans: concepts that stay in place throughout and are not counted, such as the
        ones that are :func:`always_on`.
    batch_size
        How many states of a picture pass the network at once.

    Returns
    -------
    dict
        Curves (N, T, S), or (N, M, T, S). Of classes those of every score of :data:`SCORES`, from
        one run, which goes on until the areas of agreement and probability are known (C-deletion
        and C-insertion, section 4.2.1). Of later concepts ``"projection"``, over its original value
        (section 4.2.3, Fig. 5).

    Raises
    ------
    ValueError
        If an option is unknown, the tolerance is negative, shapes do not fit, something is NaN, or
        a later concept's original value is not positive: no share of it can be taken.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers.network import Network
    >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
    >>> concepts = Concepts(torch.eye(512)[:3], network.bn_shift(block), torch.arange(3), block)
    >>> d = Decomposition(
    ...     network, torch.zeros(1, 3, 64, 64), {block: concepts}, {block: torch.ones(1, 4, 3)}
    ... )
    >>> curves = deletion_insertion(d, block, 0, torch.tensor([[[2.0, 1.0, 0.0]]]))["logit"]
    >>> curves.deletion.x[0, 0]  # one, two, three concepts gone
    tensor([0.0000, 0.3333, 0.6667, 1.0000], dtype=torch.float64)
    """
    choice(reference, "reference", "reconstruction", "picture")
    choice(axis, "axis", "all", "active")
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    asked, here, u = question(d, source, target), d.concepts[source], d.codes[source]
    count, segment = asked.targets.shape[1], d.network.segment(source, asked.later)
    expected = (len(d), count, len(here))
    if importance.ndim not in (3, 4) or (len(importance), *importance.shape[-2:]) != expected:
        raise ValueError(f"importance {tuple(importance.shape)} does not fit (N, T, k) {expected}")
    if importance.isnan().any():
        raise ValueError("importance holds NaN")
    rest = d.residual(source) if residual or reference == "picture" else None

    def of_classes(n: int) -> Callable[[Tensor], Tensor]:
        return lambda x: class_scores(segment(x), asked.targets[n])

    def of_later(n: int) -> Callable[[Tensor], Tensor]:
        def scores(x: Tensor) -> Tensor:
            after = segment(x)
            return torch.stack([(project or largest)(after, v) for v in asked.directions[n]], 1)

        whole = d[[n]].reconstruction(source)
        original = scores(whole if rest is None else whole + rest[[n]])
        if not (original > 0).all():
            least = float(original.min())
            raise ValueError(f"picture {n}: a target's largest projection is {least:.3g}")
        return lambda x: scores(x) / original

    measure = of_classes if asked.later is None else of_later
    names: Sequence[str] = SCORES if asked.later is None else ("projection",)
    needed, width = range(2 if asked.later is None else 1), len(names)
    free = torch.ones(len(here), dtype=torch.bool) if held is None else ~held.cpu()
    found: list[list[Curve]] = []
    for n, orders in enumerate(importance.flatten(1, -2).cpu()):
        active = here.gathered(u[n].any(dim=0).float()).cpu() > 0
        walks = []
        for m, row in enumerate(orders):
            order = row.argsort(descending=True, stable=True)
            order = order[(free if axis == "all" else active & free)[order]]
            wanted = [m % count * width + score for score in needed]
            walks += [_Walk(order, active, free, way, wanted, tolerance) for way in (False, True)]
        state = _states(u[n], here, rest[n] if residual and rest is not None else None)
        _run(walks, state, measure(n), batch_size)
        found.append([stacked(walk.curve() for walk in walks[way::2]) for way in range(2)])
    curves = Curves(*map(stacked, zip(*found, strict=True)))
    shape = importance.shape[1:-1]
    rows = torch.arange(shape.numel()).reshape(shape)
    return {name: curves[:, rows, rows % count * width + i] for i, name in enumerate(names)}


def class_scores(logits: Tensor, classes: Tensor) -> Tensor:
    """:data:`SCORES` (B, 3 T) of classes (T,), from logits (B, classes) (section 4.2.1).

    Examples
    --------
    >>> class_scores(torch.tensor([[0.0, 0.0]]), torch.tensor([0])).tolist()
    [[1.0, 0.5, 0.0]]
    """
    agrees = (logits.argmax(dim=1, keepdim=True) == classes).to(logits)
    own = logits.softmax(dim=1)[:, classes], logits[:, classes]
    return torch.stack([agrees, *own], dim=2).flatten(1)


def largest(w: Tensor, unit: Tensor) -> Tensor:
    """The projection score max_i ⟨w_i, v̄_t⟩ (section 4.2.3): w (B, P, C), unit (C,) → (B,).

    Examples
    --------
    >>> largest(torch.tensor([[[1.0, 5.0], [2.0, 0.0]]]), torch.tensor([1.0, 0.0])).tolist()
    [2.0]
    """
    return (w @ unit).amax(dim=1)


class _Walk:
    """One order in one direction: the states on its way, and the scores of those that were run.

    State j is what remains, or is there, after the first j concepts that the picture uses.
    """

    def __init__(
        self, order: Tensor, active: Tensor, free: Tensor, inserting: bool, wanted: list[int],
        tolerance: float,
    ):  # fmt: skip
        hits = active[order].nonzero()[:, 0].numpy()
        self.count, self.total, self.inserting = len(hits), max(1, len(order)), inserting
        # State j stands from place starts[j] on; past the last place there is none.
        self.starts = np.concatenate([[0], hits + 1, [self.total + 1]])
        self.rank = np.full(len(active), self.count)
        self.rank[order[hits].numpy()] = np.arange(self.count)
        self.active, self.held = active.numpy(), (active & ~free).numpy()
        self.wanted, self.tolerance = wanted, tolerance
        self.scores: dict[int, Tensor] = {}

    def present(self, state: int) -> NDArray[np.bool_]:
        """Which concepts (k,) are there in a state."""
        first = self.rank < state
        return self.held | (first if self.inserting else self.active & ~first)

    def next(self) -> list[int]:
        """States to run next: middles of intervals that leave the area open; none at the end."""
        if not self.scores:
            if not self.tolerance:
                return list(range(self.count + 1))
            half = self.count // 2
            few = {0, int(half**0.5), half}
            return sorted({min(j, self.count) for j in few} | {self.count - j for j in few})
        states, open_ = self._open()
        error = open_[:, self.wanted].max(axis=1, initial=0)
        largest_first = error.argsort()[::-1]
        left = error.sum() - error[largest_first].cumsum()
        if error.sum() <= self.tolerance:
            return []
        halved = largest_first[: 1 + int((left > self.tolerance / 2).sum())]
        middles = []
        for low, high in zip(states[halved], states[halved + 1], strict=True):
            middle = (self.starts[low + 1] + self.starts[high]) / 2
            inside = self.starts[low + 1 : high]
            middles.append(low + 1 + int(np.abs(inside - middle).argmin()))
        return middles

    def _open(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """States that were run, and what is open between neighbours: half of |Δscore| · Δx."""
        states = np.array(sorted(self.scores))
        scores = torch.stack([self.scores[j] for j in states]).numpy()
        # Places whose state was not run; between neighbours there are none.
        unknown = self.starts[states[1:]] - self.starts[states[:-1] + 1]
        width = np.where(np.diff(states) > 1, unknown, 0) / self.total
        return states, 0.5 * np.abs(np.diff(scores, axis=0)) * width[:, None]

    def curve(self) -> Curve:
        """The curve (J, S) through the states that were run, each as long as it stands."""
        states, error = self._open()
        places = np.stack([self.starts[states], self.starts[states + 1] - 1], axis=1)
        kept = np.concatenate([np.ones((len(states), 1), bool), places[:, 1:] > places[:, :1]], 1)
        x = torch.from_numpy(places[kept] / self.total)
        y = torch.stack([self.scores[j] for j in states for _ in range(2)])[kept.flatten()]
        return Curve(x.expand(y.shape[1], -1), y.T, torch.from_numpy(error.sum(axis=0)))


def _run(
    walks: list[_Walk], state: Callable[[Tensor], Tensor], measure: Callable[[Tensor], Tensor],
    batch_size: int,
) -> None:  # fmt: skip
    """Run what the walks ask for, all of them together, no state twice."""
    known: dict[bytes, Tensor] = {}
    while asked := [(walk, j, walk.present(j)) for walk in walks for j in walk.next()]:
        new = {p.tobytes(): p for _, _, p in asked if p.tobytes() not in known}
        names, rows = list(new), torch.from_numpy(np.array(list(new.values())))
        if names:
            scores = torch.cat([measure(state(part)) for part in rows.split(batch_size)])
            known |= zip(names, scores.cpu().double(), strict=True)
        for walk, j, present in asked:
            walk.scores[j] = known[present.tobytes()]


def _states(u: Tensor, concepts: Concepts, residual: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Which concepts are there (B, k) → PFVs (B, HW, C) of one picture with codes u (HW, k)."""
    row, column = u.nonzero(as_tuple=True)
    values, ends = u[row, column], torch.bincount(row, minlength=len(u)).cumsum(0)
    starts, concept = F.pad(ends, (1, 0))[:-1], concepts.family[column]
    ground = concepts.beta if residual is None else concepts.beta + residual.to(u)

    def state(present: Tensor) -> Tensor:
        kept = values * present.to(u.device)[:, concept]
        # A sum over the few concepts that a PFV uses, not over all: the same at any k.
        batch = torch.arange(len(kept), device=u.device)[:, None]
        bags = (starts + batch * len(values)).flatten()
        summed = F.embedding_bag(
            column.repeat(len(kept)), concepts.vectors, bags, mode="sum",
            per_sample_weights=kept.flatten(),
        )  # fmt: skip
        return ground + summed.reshape(len(kept), len(u), -1)

    return state


def stacked(curves: Iterable[Curve]) -> Curve:
    """Curves of one shape (..., S) as one more dimension in front; short rows repeat their end.

    Not in the paper.

    Examples
    --------
    >>> ends, zero = torch.tensor([0.0, 1.0]), torch.tensor(0.0)
    >>> middle = torch.tensor([0.0, 0.5, 1.0])
    >>> stacked([Curve(ends, ends, zero), Curve(middle, middle, zero)]).x.tolist()
    [[0.0, 1.0, 1.0], [0.0, 0.5, 1.0]]
    """
    curves = list(curves)
    size = max(curve.x.shape[-1] for curve in curves)

    def padded(part: Tensor) -> Tensor:
        return torch.cat([part, part[..., -1:].expand(*part.shape[:-1], size - part.shape[-1])], -1)

    x, y = (torch.stack([padded(getattr(c, name)) for c in curves]) for name in ("x", "y"))
    return Curve(x, y, torch.stack([curve.bracket for curve in curves]))

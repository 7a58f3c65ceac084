"""Concepts taken out, concepts put in: deletion and insertion curves (sections 4.2.1 and 4.2.3).

Every choice that the paper leaves open is a named argument; its default is the paper's reading.
Functions take one picture or many and treat each by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor
from torch.nn import functional as F

from .codes import reconstruct
from .concepts import Concepts
from .gig import as_maps, choice
from .importance import fitting
from .network import Network

SCORES = ("agreement", "probability", "logit")
"""What is read off the class: is it still the prediction (1 or 0), its probability, its logit."""


@dataclass(frozen=True)
class Curves:
    """Scores while concepts are deleted and inserted (section 4.2).

    ``x`` (S,): fraction of concepts, from 0 to 1. ``deletion`` and ``insertion`` (..., S): the
    score after that fraction was removed from the reconstruction, or was put alone onto β.

    Examples
    --------
    >>> line = torch.tensor([0.0, 1.0])
    >>> Curves(line, 1 - line, line).auc()
    (tensor(0.5000), tensor(0.5000))
    """

    x: Tensor
    deletion: Tensor
    insertion: Tensor

    def auc(self) -> tuple[Tensor, Tensor]:
        """Areas under the deletion and the insertion curves (...,): trapezoid means over x."""
        return torch.trapezoid(self.deletion, self.x), torch.trapezoid(self.insertion, self.x)

    def gain(self) -> Tensor:
        """Area under insertion minus area under deletion (...,), as in the paper's Figure 4."""
        deletion, insertion = self.auc()
        return insertion - deletion

    def mean(self, dim: int) -> "Curves":
        """Means over one dimension of (..., S), such as a picture's targets."""
        return Curves(self.x, self.deletion.mean(dim=dim), self.insertion.mean(dim=dim))


def per_class(importance: Tensor, classes: Tensor | Sequence[int]) -> Tensor:
    """Replace every picture's importance (N, k) by the mean over the pictures of its class (N,).

    A ranking by class instead of by picture: section 4.2.1 does not say which it takes.

    Raises
    ------
    ValueError
        If the two do not have the same number of pictures.

    Examples
    --------
    >>> per_class(torch.tensor([[1.0, 3.0], [3.0, 1.0], [0.0, 5.0]]), [4, 4, 9]).tolist()
    [[2.0, 2.0], [2.0, 2.0], [0.0, 5.0]]
    """
    labels = torch.as_tensor(classes, device=importance.device)
    if importance.ndim != 2 or labels.shape != importance.shape[:1]:
        raise ValueError(
            f"importance (N, k) {tuple(importance.shape)} and classes (N,) {tuple(labels.shape)} "
            "do not fit"
        )
    return torch.stack([importance[labels == label].mean(dim=0) for label in labels])


def always_on(codes: Tensor, share: float = 0.5) -> Tensor:
    """Which concepts (k,) have a coefficient in at least this share of all PFVs (..., k).

    To hold them in place is not in the paper; chapter 5 says why one may want to.

    Examples
    --------
    >>> always_on(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).tolist()
    [True, False]
    """
    return (codes != 0).flatten(0, -2).double().mean(dim=0) >= share


def class_curves(
    network: Network, codes: Tensor, concepts: Concepts, importance: Tensor,
    classes: Tensor | Sequence[int], **options: object,
) -> dict[str, Curves]:  # fmt: skip
    """C-deletion and C-insertion (section 4.2.1), every score of :data:`SCORES` from one run.

    Parameters
    ----------
    codes
        U (N, HW, k).
    importance
        (N, k), such as ``class_importance("gig", …)[:, 0]``; the highest goes first.
    classes
        (N,) the network's own predictions for the pictures.
    **options
        ``axis``, ``steps``, ``held`` and ``batch_size`` of :func:`curves_of`.

    Returns
    -------
    dict
        ``{score: Curves}`` of (N, S).

    Raises
    ------
    ValueError
        If an option is unknown, shapes do not fit, or something is NaN.
    """
    u, concepts = fitting(network, codes, concepts)
    labels = torch.as_tensor(classes).tolist()
    if len(labels) != len(u):
        raise ValueError(f"{len(labels)} classes for {len(u)} pictures")

    def measure(n: int) -> Callable[[Tensor], Tensor]:
        return lambda x: class_scores(network.propagate(x, concepts.block), labels[n])

    found = curves_of(u, concepts, importance, measure, **options)  # type: ignore[arg-type]
    return {
        score: Curves(found.x, found.deletion[..., i], found.insertion[..., i])
        for i, score in enumerate(SCORES)
    }


def class_scores(logits: Tensor, label: int) -> Tensor:
    """:data:`SCORES` (B, 3) of a class, from logits (B, classes) (section 4.2.1).

    Examples
    --------
    >>> class_scores(torch.tensor([[0.0, 0.0]]), 0).tolist()
    [[1.0, 0.5, 0.0]]
    """
    agrees = (logits.argmax(dim=1) == label).to(logits)
    return torch.stack([agrees, logits.softmax(dim=1)[:, label], logits[:, label]], dim=1)


def largest(w: Tensor, unit: Tensor) -> Tensor:
    """The projection score max_i ⟨w_i, v̄_t⟩ (section 4.2.3): w (B, P, C), unit (C,) → (B,).

    Examples
    --------
    >>> largest(torch.tensor([[[1.0, 5.0], [2.0, 0.0]]]), torch.tensor([1.0, 0.0])).tolist()
    [2.0]
    """
    return (w @ unit).amax(dim=1)


def interlayer_curves(
    network: Network, codes: Tensor, concepts: Concepts, target: str, vector: Tensor,
    importance: Tensor, *, project: Callable[[Tensor, Tensor], Tensor] = largest,
    residual: Tensor | None = None, reference: Tensor | None = None, **options: object,
) -> Curves:  # fmt: skip
    """Interlayer deletion and insertion of one target concept a picture (section 4.2.3, Fig. 5).

    The score is the projection score over its original value.

    Parameters
    ----------
    target, vector
        The later block, and its concept's vector, (C_b,), or (N, C_b) one a picture.
    importance
        (N, k), such as ``interlayer_importance("gig", …)[:, t]``.
    project
        What is scored, from PFVs of the later block and the target's unit vector: (B, P, C_b),
        (C_b,) → (B,). :func:`largest` takes the maximum anew in every state;
        ``lambda w, unit: largest(w - shift, unit)`` projects centred PFVs,
        ``lambda w, unit: w[:, i] @ unit`` stays at one position.
    residual
        ε of eq. 1, X − X̃ (N, HW, C), kept in every state; the paper says nothing of it.
    reference
        Pre-activations (N, HW, C) whose score is the original value; by default the state with
        all concepts, so that insertion ends at 1. Pass X for the picture's own.
    **options
        As :func:`class_curves`.

    Raises
    ------
    ValueError
        Also if a picture's original value is not positive: no share of it can be taken.
    """
    u, concepts = fitting(network, codes, concepts)
    whole = reconstruct(u, concepts)
    for name, given in (("residual", residual), ("reference", reference)):
        if given is not None and given.shape != whole.shape:
            raise ValueError(f"{name} {tuple(given.shape)}, expected {tuple(whole.shape)}")
    if residual is not None:
        whole = whole + residual.to(whole)
    given = whole if reference is None else reference.to(whole)
    unit = F.normalize(vector.to(whole), dim=-1).expand(len(u), -1)

    def score(x: Tensor, n: int) -> Tensor:
        w = network.propagate(x, concepts.block, target)
        return project(w.flatten(2).transpose(1, 2), unit[n])

    def measure(n: int) -> Callable[[Tensor], Tensor]:
        original = score(as_maps(given[n : n + 1]), n)
        if not original > 0:
            raise ValueError(f"picture {n}: the target's largest projection is {original[0]:.3g}")
        return lambda x: (score(x, n) / original)[:, None]

    found = curves_of(u, concepts, importance, measure, residual=residual, **options)  # type: ignore[arg-type]
    return Curves(found.x, found.deletion[..., 0], found.insertion[..., 0])


@torch.no_grad()
def curves_of(
    codes: Tensor, concepts: Concepts, importance: Tensor,
    measure: Callable[[int], Callable[[Tensor], Tensor]], *, axis: str = "all",
    steps: int | None = None, held: Tensor | None = None, residual: Tensor | None = None,
    batch_size: int = 16,
) -> Curves:  # fmt: skip
    """Curves of any scores of a block's pre-activations (section 4.2).

    Parameters
    ----------
    codes
        U (N, HW, k).
    importance
        (N, k); the highest goes first.
    measure
        ``measure(n)`` maps states (B, C, H, W) of picture n to M scores (B, M).
    axis
        ``"all"``: x counts all k concepts; ``"active"``: those with a coefficient in the picture.
    steps
        Number of intervals on x, at most: their ends are a geometric series from one concept to
        half of them, mirrored in the other half, because curves bend at both ends. By default
        one a concept. Where no coefficient changes, nothing is run.
    held
        (k,) booleans: concepts that stay in place throughout and are not counted, such as the
        ones that are :func:`always_on`.
    residual
        (N, HW, C), added to every state.
    batch_size
        How many states of a picture pass the network at once.

    Returns
    -------
    Curves
        Of (N, S, M).

    Raises
    ------
    ValueError
        If the axis is unknown, or the importance does not fit.
    """
    choice(axis, "axis", "all", "active")
    if importance.shape != (len(codes), len(concepts)) or importance.isnan().any():
        raise ValueError(
            f"importance {tuple(importance.shape)}: expected {(len(codes), len(concepts))}, no NaN"
        )
    free = torch.ones(len(concepts), dtype=torch.bool) if held is None else ~held
    free = free.to(codes.device)
    x = _places(int(free.sum()), steps, axis)
    vectors, beta = concepts.vectors, concepts.beta
    rows: list[Tensor] = []
    for n, u in enumerate(codes):
        value = measure(n)
        start = beta + u[:, ~free] @ vectors[~free]
        if residual is not None:
            start = start + residual[n].to(start)
        active = u.any(dim=0) & free
        order = importance[n].argsort(descending=True, stable=True).to(u.device)
        order = order[(free if axis == "all" else active)[order]]
        hits = F.pad(active[order].cumsum(dim=0), (1, 0))
        # How many active concepts each step has passed; equal numbers are one state.
        passed = hits[(x * len(order)).round().long().to(hits.device)]
        states, place = passed.unique(return_inverse=True)
        order = order[active[order]]
        full = u[:, order] @ vectors[order]
        prefix, last, found = torch.zeros_like(full), 0, []
        for part in states.split(batch_size):
            prefixes = []
            for state in part.tolist():
                group = order[last:state]
                prefix = prefix + u[:, group] @ vectors[group]
                # Sums in steps drift by rounding; the last state is the reconstruction itself.
                prefixes.append(full if state == len(order) else prefix)
                last = state
            inserted = torch.stack(prefixes)
            both = (start + full - inserted, start + inserted)
            found.append(torch.stack([value(as_maps(state)) for state in both]))
        rows.append(torch.cat(found, dim=1)[:, place].cpu().double())
    deletion, insertion = torch.stack(rows, dim=1)
    return Curves(x, deletion, insertion)


def _places(total: int, steps: int | None, axis: str) -> Tensor:
    """Fractions of ``total`` concepts that are run."""
    x = torch.arange(total + 1, dtype=torch.float64) / total
    if steps is not None and steps < total:
        inner = steps - 1
        series = torch.logspace(0, log10(total / 2), inner // 2 + 1, dtype=torch.float64) / total
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        x = torch.cat([ends, series[: (inner + 1) // 2], 1 - series[: inner // 2]]).unique()
    return (x * total).round().unique() / total if axis == "all" else x

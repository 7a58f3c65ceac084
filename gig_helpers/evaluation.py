"""Do attributions tell what the network uses? Section 4.2: concepts taken out, concepts put in.

Every choice that the paper leaves open is a named argument; its default is the paper's reading.
Functions take one picture or many and treat each by itself. :func:`class_study` and
:func:`interlayer_study` go picture by picture and leave each on disk, so a long run can be resumed.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from . import artifacts, decomposition
from . import gig as gig_module
from . import network as network_module
from .clustering import Concepts
from .gig import _choice, as_maps, class_relevance, gig
from .network import Network

ORDERS = ("gig", "random", "activation", "gradient", "ablation", "cosine")
SCORES = ("agreement", "probability", "logit")


@dataclass(frozen=True)
class Curves:
    """Scores while concepts are deleted and inserted (section 4.2).

    ``x`` (S,): fraction of concepts, from 0 to 1. ``deletion`` and ``insertion`` (..., S): the
    score after that fraction was removed from the reconstruction, or was put alone onto β.
    """

    x: Tensor
    deletion: Tensor
    insertion: Tensor

    def auc(self) -> tuple[Tensor, Tensor]:
        """Areas under the deletion and the insertion curves (...,): trapezoid means over x."""
        return torch.trapezoid(self.deletion, self.x), torch.trapezoid(self.insertion, self.x)


@dataclass(frozen=True)
class Study:
    """Curves of many pictures in several orders (section 4.2), and what they took.

    Attributes
    ----------
    curves
        By name: an order and a score ("gig, logit"), or an order. (N, S), or (N, T, S) for T
        target concepts a picture.
    scores
        By order: the concepts' importances (N, T, k).
    targets
        Of an interlayer study: numbers (N, T) of the later block's concepts; else (N, 0).
    seconds
        By step ("codes", which may have been on disk, an order, "curves of" an order): wall time
        (N,) of each picture, on the machine that made it.
    """

    curves: dict[str, Curves]
    scores: dict[str, Tensor]
    targets: Tensor
    seconds: dict[str, Tensor]


@dataclass(frozen=True)
class Interval:
    """A mean over pictures and its confidence interval; not in the paper, see :func:`interval`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison(Interval):
    """A mean paired difference with the p-value of the signed-rank test (Wilcoxon, 1945)."""

    p_value: float


# ------------------------------------------------------------------------------------------ orders


def concept_scores(
    order: str,
    network: Network,
    codes: Tensor,
    concepts: Tensor,
    source: str,
    *,
    classes: Tensor | Sequence[Any] | None = None,
    target: str | None = None,
    target_vectors: Tensor | None = None,
    beta: Tensor | None = None,
    seed: int = 0,
    shape: tuple[int, int] | None = None,
    batch_size: int = 16,
    **options: Any,
) -> Tensor:
    """Importance of every concept of the source for some classes or some later concepts.

    Parameters
    ----------
    order
        ``"gig"``: Γ_q of eqs. 5 and 7. ``"gradient"``: gradient × code at the end of GIG's path.
        ``"ablation"``: what the target loses when concept q alone is taken out of the
        reconstruction, the ground truth of its single effect. ``"activation"``: ``Σ_p |u_pq|``.
        ``"cosine"``: concepts alone, no picture: the cosine between the target's direction (a
        unit vector e_c for a class) and what ``v_q`` on a map of one position changes there,
        F(β + v_q) − F(β). ``"random"``: a random order.
    codes
        U (N, HW, k)
    concepts
        V (k, C)
    classes
        (T,) or (N, T); or else give ``target`` and ``target_vectors``, (T, C_b) or (N, T, C_b).
    seed
        Of the random order.
    **options
        ``points``, ``output`` and others of :func:`gig_helpers.gig.gig` and
        :func:`gig_helpers.gig.class_relevance`; "ablation" and "cosine" use logits.

    Returns
    -------
    Tensor
        (N, T, k)

    Raises
    ------
    ValueError
        If the order is unknown, or not exactly one kind of target is given.
    """
    _choice(order, "order", *ORDERS)
    by_class = classes is not None
    if by_class == (target is not None) or (target is None) != (target_vectors is None):
        raise ValueError("give either classes, or target and target_vectors")
    codes, concepts, start = _inputs(network, codes, concepts, source, beta)
    wanted = torch.as_tensor(classes) if by_class else cast(Tensor, target_vectors)
    if wanted.ndim < (2 if by_class else 3):
        wanted = wanted.expand(len(codes), *wanted.shape)
    wanted = wanted.to(start.device)
    if order in ("gig", "gradient"):
        path = {"beta": beta, "shape": shape, "batch_size": batch_size, **options}
        if order == "gradient":
            path["method"] = "endpoint"
        if target is None:
            found = class_relevance(network, codes, concepts, source, wanted, **path)
        else:
            found = gig(network, codes, concepts, source, target, wanted, **path)
        return cast(Tensor, found)
    size = (len(codes), wanted.shape[1], len(concepts))
    if order == "activation":
        return codes.abs().sum(dim=1, keepdim=True).expand(size)
    if order == "random":
        return torch.rand(size, generator=torch.Generator().manual_seed(seed)).to(start)

    def response(x: Tensor) -> Tensor:
        if target is None:
            return network.logits_from(x, source)
        return network.between(x, source, target).sum(dim=(2, 3))

    scores = start.new_zeros(size)
    with torch.no_grad():
        if order == "cosine":
            alone = torch.cat([start[None], start + concepts])[:, :, None, None]
            mapped = torch.cat([response(part) for part in alone.split(batch_size)])
            change = torch.nn.functional.normalize(mapped[1:] - mapped[0], dim=1)
            for n in range(len(codes)):
                scores[n] = _directions(wanted[n], by_class, change) @ change.T
            return scores
        for n, u in enumerate(codes):
            full = start + u @ concepts
            (whole,) = response(as_maps(full[None], shape))
            toward = _directions(wanted[n], by_class, whole)
            for part in u.any(dim=0).nonzero()[:, 0].split(batch_size):
                without = full - u.T[part, :, None] * concepts[part, None]
                scores[n, :, part] = toward @ (whole - response(as_maps(without, shape))).T
    return scores


def per_class(scores: Tensor, classes: Tensor | Sequence[int]) -> Tensor:
    """Replace every picture's scores (N, k) by the mean over the pictures of its class (N,).

    A ranking by class instead of by picture: section 4.2.1 does not say which it takes.

    Raises
    ------
    ValueError
        If the two do not have the same number of pictures.
    """
    labels = torch.as_tensor(classes, device=scores.device)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores (N, k) {tuple(scores.shape)}, classes (N,) {tuple(labels.shape)} do not fit"
        )
    return torch.stack([scores[labels == label].mean(dim=0) for label in labels])


def always_on(codes: Tensor, share: float = 0.5) -> Tensor:
    """Which concepts (k,) have a coefficient in at least this share of all PFVs (..., k).

    To hold them in place is not in the paper; chapter 5 says why one may want to.
    """
    return (codes != 0).flatten(0, -2).double().mean(dim=0) >= share


# ------------------------------------------------------------------------------------------ curves


def class_curves(
    network: Network,
    codes: Tensor,
    concepts: Tensor,
    source: str,
    scores: Tensor,
    classes: Tensor | Sequence[int],
    *,
    score: str = "agreement",
    ranking: str = "picture",
    absolute: bool = False,
    axis: str = "all",
    steps: int | None = None,
    held: Tensor | None = None,
    beta: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Curves:
    """C-deletion and C-insertion (section 4.2.1).

    Parameters
    ----------
    codes, concepts
        U (N, HW, k) and V (k, C).
    scores
        (N, k), such as ``concept_scores("gig", …)[:, 0]``; the highest goes first.
    classes
        (N,) the network's own predictions for the pictures.
    score
        ``"agreement"``: 1 where the prediction is still that class, else 0; or the class's
        ``"probability"`` or ``"logit"``.
    ranking
        ``"picture"``: each by its own scores; ``"class"``: by their mean over a class's pictures.
    absolute
        Rank by absolute scores instead of signed ones.
    axis
        ``"all"``: x counts all k concepts; ``"active"``: those with a coefficient in the picture.
    steps
        Number of intervals on x, at most: their ends are a geometric series from one concept to
        half of them, mirrored in the other half, because curves bend at both ends. By default
        one a concept. Where no coefficient changes, nothing is run.
    held
        (k,) booleans: concepts that stay in place throughout and are not counted, such as the
        ones that are :func:`always_on`.
    batch_size
        How many states of a picture pass the network at once.

    Returns
    -------
    Curves
        Of (N, S).

    Raises
    ------
    ValueError
        If an option is unknown, shapes do not fit, or something is NaN.
    """
    _choice(score, "score", *SCORES)
    _choice(ranking, "ranking", "picture", "class")
    u, v, start = _inputs(network, codes, concepts, source, beta)
    labels = torch.as_tensor(classes).tolist()
    if len(labels) != len(u):
        raise ValueError(f"{len(labels)} classes for {len(u)} pictures")
    if ranking == "class":
        scores = per_class(scores, labels)

    def measure(n: int) -> Callable[[Tensor], Tensor]:
        return lambda x: _class_value(network.logits_from(x, source), labels[n], score)

    base = start.expand(len(u), 1, -1)
    return _curves(u, v, base, scores, measure, absolute, axis, steps, held, shape, batch_size)


def interlayer_curves(
    network: Network,
    codes: Tensor,
    concepts: Tensor,
    source: str,
    target: str,
    target_vector: Tensor,
    scores: Tensor,
    *,
    maximum: str = "each",
    denominator: str = "reconstruction",
    residual: bool = False,
    centred: bool = False,
    original: Tensor | None = None,
    absolute: bool = False,
    axis: str = "all",
    steps: int | None = None,
    held: Tensor | None = None,
    beta: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Curves:
    """Interlayer deletion and insertion of one target concept a picture (section 4.2.3, Fig. 5).

    The score is the projection score max_i ⟨w_i, v̄_t⟩ over its original value.

    Parameters
    ----------
    target_vector
        (C_b,), or (N, C_b) where each picture has its own.
    scores
        (N, k), such as ``concept_scores("gig", …)[:, t]``.
    maximum
        ``"each"``: taken anew at every step; ``"fixed"``: at the position that has it before any
        deletion or insertion.
    denominator
        ``"reconstruction"``: the maximum of X̃, so that insertion ends at 1; ``"original"``: of X.
    residual
        Keep ε of eq. 1, X − X̃, in every state.
    centred
        Project w_i − μ_BN instead of w_i.
    original
        X (N, HW, C) of the source block; "original" and ``residual`` need it.

    Notes
    -----
    The other parameters and what is returned are those of :func:`class_curves`.

    Raises
    ------
    ValueError
        Also if a picture's original maximum is not positive: no share of it can be taken.
    """
    _choice(maximum, "maximum", "each", "fixed")
    _choice(denominator, "denominator", "reconstruction", "original")
    u, v, start = _inputs(network, codes, concepts, source, beta)
    if original is None and (residual or denominator == "original"):
        raise ValueError('residual=True and denominator="original" need original=')
    base = start.expand(len(u), 1, -1)
    full = base + u @ v
    given = full if original is None else original.to(full)
    if given.shape != full.shape:
        raise ValueError(f"original {tuple(given.shape)}, expected {tuple(full.shape)}")
    if residual:
        base, full = base + (given - full), given
    reference = given if denominator == "original" else full
    unit = torch.nn.functional.normalize(target_vector.to(full), dim=-1).expand(len(u), -1)
    shift = network.bn_shift(target) if centred else torch.zeros_like(unit[0])

    def project(n: int, x: Tensor) -> Tensor:
        w = network.between(x, source, target).flatten(2).transpose(1, 2)
        return (w - shift) @ unit[n]

    def measure(n: int) -> Callable[[Tensor], Tensor]:
        before = project(n, as_maps(reference[n : n + 1], shape))[0]
        whole, place = before.max(dim=0)
        if not whole > 0:
            raise ValueError(f"picture {n}: the target's largest projection is {whole:.3g}")
        if maximum == "fixed":
            return lambda x: project(n, x)[:, place] / whole
        return lambda x: project(n, x).amax(dim=1) / whole

    return _curves(u, v, base, scores, measure, absolute, axis, steps, held, shape, batch_size)


def class_fidelity(
    network: Network,
    codes: Tensor,
    concepts: Tensor,
    source: str,
    scores: Tensor,
    classes: Tensor | Sequence[int],
    *,
    score: str = "logit",
    subsets: int = 200,
    fraction: float = 0.2,
    correlation: str = "spearman",
    seed: int = 0,
    beta: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Tensor:
    """C-μFidelity (Fel et al., 2024): do the scores of a set add up to what its loss costs?

    The correlation, over random sets S of concepts, of Σ_{q∈S} Γ_q with the score lost when the
    coefficients of S are set to 0.

    Parameters
    ----------
    scores
        (N, k), or (N, T, k) to judge T orders by the same sets.
    subsets, fraction
        How many sets, and their share of all k concepts.
    correlation
        ``"spearman"`` or ``"pearson"``.

    Notes
    -----
    The other parameters are those of :func:`class_curves`.

    Returns
    -------
    Tensor
        (N,) or (N, T), NaN where nothing varies.

    Raises
    ------
    ValueError
        If an option is unknown or shapes do not fit.
    """
    _choice(score, "score", "probability", "logit")
    _choice(correlation, "correlation", "spearman", "pearson")
    u, v, start = _inputs(network, codes, concepts, source, beta)
    several = scores if scores.ndim == 3 else scores[:, None]
    for one in several.unbind(dim=1):
        _fitting(one, u)
    size = round(fraction * len(v))
    if subsets < 2 or not 0 < size < len(v):
        raise ValueError(f"cannot compare {subsets} sets of {size} of {len(v)} concepts")
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(len(v), generator=generator)[:size] for _ in range(subsets)]
    out = torch.zeros(subsets, len(v)).scatter_(1, torch.stack(draws), 1.0).to(start)
    relate = stats.spearmanr if correlation == "spearman" else stats.pearsonr
    result = []
    for picture, rows, label in zip(u, several.to(start), classes, strict=True):
        active = picture.any(dim=0)
        lost = []
        for part in out[:, active].split(batch_size):
            kept = start + (picture[:, active] * (1 - part)[:, None]) @ v[active]
            with torch.no_grad():
                logits = network.logits_from(as_maps(kept, shape), source)
            lost.append(-_class_value(logits, int(label), score))
        true = torch.cat(lost).cpu().numpy()
        with np.errstate(invalid="ignore"):
            found = [relate((out @ gamma).cpu().numpy(), true).statistic for gamma in rows]
        result.append([float(value) for value in found])
    both = torch.tensor(result, dtype=torch.float64)
    return both if scores.ndim == 3 else both[:, 0]


# ----------------------------------------------------------------------------------------- studies


def class_study(
    network: Network,
    images: Tensor,
    classes: Tensor | Sequence[int],
    concepts: Concepts,
    penalty: float,
    orders: Sequence[str],
    *,
    measures: Sequence[str] = ("agreement", "probability"),
    points: int = 32,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Study:
    """C-deletion and C-insertion of many pictures at one block; what is on disk is not run again.

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    classes
        (N,), the network's predictions for them.
    penalty
        λ of eq. 2.
    orders, measures
        Some of :data:`ORDERS` and of :data:`SCORES`; an order's scores come from one run.
    points, steps
        See :func:`gig_helpers.gig.attribute` and :func:`class_curves`.

    Returns
    -------
    Study
        Curves (N, S) by "order, score"; scores (N, 1, k).

    Raises
    ------
    ValueError
        If there is not one class a picture, or a name is unknown.
    """
    for score in measures:
        _choice(score, "score", *SCORES)
    block, labels = concepts.block, torch.as_tensor(classes).tolist()
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} classes for {len(images)} pictures")

    def measure(n: int, log: "_Log") -> None:
        u = decomposition.load_codes(network, images[n : n + 1], concepts, penalty)
        log.lap("codes")

        def values(x: Tensor) -> Tensor:
            logits = network.logits_from(x, block)
            return torch.stack([_class_value(logits, labels[n], m) for m in measures], dim=1)

        for order in orders:
            scores = concept_scores(
                order, network, u, concepts.vectors, block, classes=labels[n : n + 1],
                beta=concepts.beta, seed=seed + n, batch_size=batch_size, points=points,
            )[:, 0]  # fmt: skip
            log.add(f"scores/{order}", scores, order)
            # Every score from one run of the network.
            both = _curves(
                u, concepts.vectors, concepts.beta[None, None], scores, lambda _: values,
                steps=steps, batch_size=batch_size,
            )  # fmt: skip
            for m, score in enumerate(measures):
                curves = Curves(both.x, both.deletion[..., m], both.insertion[..., m])
                log.add_curves(f"{order}, {score}", curves)
            log.lap(f"curves of {order}")

    settings = [
        {"class": label, "orders": list(orders), "measures": list(measures), "points": points,
         "steps": steps, "seed": seed + n, "penalty": penalty}
        for n, label in enumerate(labels)
    ]  # fmt: skip
    return _study("class-study", network, images, [concepts], settings, measure)


def interlayer_study(
    network: Network,
    images: Tensor,
    classes: Tensor | Sequence[int],
    source: Concepts,
    target: Concepts,
    penalties: Mapping[str, float],
    orders: Sequence[str],
    *,
    targets: int = 5,
    points: int = 32,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> Study:
    """Interlayer deletion and insertion of many pictures between two blocks, as in Figure 5.

    A picture's targets are the concepts of the later block with the largest relevance for its
    class (eq. 7), among those with a positive code somewhere and a positive projection there: of
    a concept that is present only negatively there is no largest projection to lose.

    Parameters
    ----------
    images, classes
        As :func:`class_study`.
    penalties
        λ of both blocks.
    targets
        Concepts of the later block a picture, T; the paper takes 5.

    Returns
    -------
    Study
        Curves (N, T, S) and scores (N, T, k) by order.

    Raises
    ------
    ValueError
        Also if a picture has fewer such targets.
    """
    labels = torch.as_tensor(classes).tolist()
    if len(labels) != len(images):
        raise ValueError(f"{len(labels)} classes for {len(images)} pictures")
    a, b = source.block, target.block

    def measure(n: int, log: "_Log") -> None:
        codes = {
            here.block: decomposition.load_codes(
                network, images[n : n + 1], here, penalties[here.block]
            )
            for here in (source, target)
        }
        log.lap("codes")
        relevance = class_relevance(
            network, codes[b], target.vectors, b, labels[n : n + 1], beta=target.beta,
            points=points, batch_size=batch_size,
        )[0, 0]  # fmt: skip
        unit = torch.nn.functional.normalize(target.vectors, dim=1)
        with torch.no_grad():
            w = network.between(as_maps(codes[a] @ source.vectors + source.beta), a, b)
        present = ((w[0].flatten(1).T @ unit.T).amax(0) > 0) & (codes[b][0] > 0).any(0)
        if int(present.sum()) < targets:
            raise ValueError(f"picture {n} has {int(present.sum())} targets at {b}, not {targets}")
        best = relevance.masked_fill(~present, -torch.inf).topk(targets).indices
        vectors = target.vectors[best]
        log.add("targets", best[None], "targets")
        given = (network, codes[a], source.vectors, a)
        for order in orders:
            scores = concept_scores(
                order, *given, target=b, target_vectors=vectors, beta=source.beta,
                seed=seed + n, batch_size=batch_size, points=points,
            )  # fmt: skip
            log.add(f"scores/{order}", scores, order)
            parts = [
                interlayer_curves(
                    *given, b, vectors[t], scores[:, t], steps=steps, beta=source.beta,
                    batch_size=batch_size,
                )
                for t in range(targets)
            ]  # fmt: skip
            joined = [torch.stack([getattr(p, w) for p in parts], dim=1) for w in _WAYS]
            log.add_curves(order, Curves(parts[0].x, *joined))
            log.lap(f"curves of {order}")

    settings = [
        {"class": label, "orders": list(orders), "targets": targets, "points": points,
         "steps": steps, "seed": seed + n, "penalties": [penalties[a], penalties[b]]}
        for n, label in enumerate(labels)
    ]  # fmt: skip
    return _study("interlayer-study", network, images, [source, target], settings, measure)


_WAYS = ("deletion", "insertion")


class _Log:
    """What one picture's measurement has found so far: tensors by name, seconds by step."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self._last = now - self._last, now

    def add(self, name: str, tensor: Tensor, step: str) -> None:
        self.tensors[name] = tensor.cpu().clone()  # waits for a GPU, so the lap is its own
        self.lap(step)

    def add_curves(self, name: str, curves: Curves) -> None:
        for way in ("x", *_WAYS):
            self.tensors[f"{way}/{name}"] = getattr(curves, way).clone()  # safetensors: own memory


def _study(
    stage: str,
    network: Network,
    images: Tensor,
    concepts: Sequence[Concepts],
    settings: Sequence[dict[str, Any]],
    measure: Callable[[int, _Log], None],
) -> Study:
    """Measure every picture, or read what an equal run has measured."""
    shared = {
        "network": network.fingerprint,
        "blocks": [here.block for here in concepts],
        "concepts": [here.fingerprint for here in concepts],
    }
    code = (network_module, decomposition, gig_module, sys.modules[__name__])
    rows: list[dict[str, Tensor]] = []
    laps: list[dict[str, float]] = []
    for n, (image, own) in enumerate(zip(images, settings, strict=True)):

        def compute(n: int = n) -> tuple[dict[str, Tensor], dict[str, Any]]:
            log = _Log()
            measure(n, log)
            return log.tensors, {"seconds": log.seconds}

        tensors, record = artifacts.cached(
            stage, {**shared, **own, "picture": artifacts.digest(image)}, compute, code
        )
        rows.append(tensors)
        laps.append(record["seconds"])
    curves, scores, targets = {}, {}, torch.zeros(len(rows), 0, dtype=torch.int64)
    rank = {order: n for n, order in enumerate(settings[0]["orders"])}  # files sort by name
    for key in sorted(rows[0], key=lambda key: rank.get(key.partition("/")[2].split(",")[0], 0)):
        kind, _, name = key.partition("/")
        if kind == "x":
            ways = [torch.cat([row[f"{way}/{name}"] for row in rows]) for way in _WAYS]
            curves[name] = Curves(rows[0][key], *ways)
        elif kind == "scores":
            joined = torch.cat([row[key] for row in rows])
            scores[name] = joined if joined.ndim == 3 else joined[:, None]
        elif kind == "targets":
            targets = torch.cat([row[key] for row in rows])
    seconds = {step: torch.tensor([lap[step] for lap in laps]) for step in laps[0]}
    return Study(curves, scores, targets, seconds)


# -------------------------------------------------------------------------------------- statistics


def interval(values: Tensor, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Mean over pictures (N,) with its percentile interval of 9,999 resamples (Efron, 1979).

    Raises
    ------
    ValueError
        With fewer than two pictures, or NaN.
    """
    sample = values.detach().cpu().double().numpy()
    if sample.ndim != 1 or len(sample) < 2 or not np.isfinite(sample).all():
        raise ValueError(f"expected two or more finite values (N,), got {sample.shape}")
    found = stats.bootstrap(
        (sample,), np.mean, confidence_level=confidence, method="percentile", batch=500,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return Interval(sample.mean(), *map(float, found.confidence_interval))


def compare(a: Tensor, b: Tensor, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Paired comparison a − b of two methods on the same pictures (N,) (Wilcoxon, 1945).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"not the same pictures: {tuple(a.shape)} and {tuple(b.shape)}")
    found = interval(a - b, confidence, seed)
    difference = (a - b).detach().cpu().double().numpy()
    p = stats.wilcoxon(difference).pvalue if difference.any() else 1.0
    return Comparison(found.mean, found.low, found.high, float(p))


# ------------------------------------------------------------------------------------------ shared


@torch.no_grad()
def _curves(
    codes: Tensor,
    concepts: Tensor,
    base: Tensor,
    scores: Tensor,
    measure: Callable[[int], Callable[[Tensor], Tensor]],
    absolute: bool = False,
    axis: str = "all",
    steps: int | None = None,
    held: Tensor | None = None,
    shape: tuple[int, int] | None = None,
    batch_size: int = 16,
) -> Curves:
    """Curves of every picture; ``base`` (N, HW or 1, C) is what no concept is part of.

    ``measure(n)`` maps states (B, C, H, W) of picture n to scores (B,), or (B, M) for M at once.
    """
    _choice(axis, "axis", "all", "active")
    _fitting(scores, codes)
    free = (
        torch.ones_like(codes[0, 0], dtype=torch.bool) if held is None else ~held.to(codes.device)
    )
    total = int(free.sum())
    x = torch.arange(total + 1, dtype=torch.float64) / total
    if steps is not None and steps < total:
        inner = steps - 1
        series = torch.logspace(0, log10(total / 2), inner // 2 + 1, dtype=torch.float64) / total
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        x = torch.cat([ends, series[: (inner + 1) // 2], 1 - series[: inner // 2]]).unique()
    if axis == "all":
        x = (x * total).round().unique() / total
    rows: list[Tensor] = []
    for n, u in enumerate(codes):
        value = measure(n)
        start = base[n] + u[:, ~free] @ concepts[~free]
        active = u.any(dim=0) & free
        order = (scores[n].abs() if absolute else scores[n]).argsort(descending=True, stable=True)
        order = order.to(u.device)
        order = order[(free if axis == "all" else active)[order]]
        hits = torch.nn.functional.pad(active[order].cumsum(dim=0), (1, 0))
        # How many active concepts each step has passed; equal numbers are one state.
        passed = hits[(x * len(order)).round().long().to(hits.device)]
        states, place = passed.unique(return_inverse=True)
        order = order[active[order]]
        full = u[:, order] @ concepts[order]
        prefix, last, found = torch.zeros_like(full), 0, []
        for part in states.split(batch_size):
            prefixes = []
            for state in part.tolist():
                group = order[last:state]
                prefix = prefix + u[:, group] @ concepts[group]
                # Sums in steps drift by rounding; the last state is the reconstruction itself.
                prefixes.append(full if state == len(order) else prefix)
                last = state
            inserted = torch.stack(prefixes)
            found.append(
                torch.stack(
                    [
                        value(as_maps(start + full - inserted, shape)),
                        value(as_maps(start + inserted, shape)),
                    ]
                )
            )
        rows.append(torch.cat(found, dim=1)[:, place].cpu().double())
    both = torch.stack(rows, dim=1)
    return Curves(x, both[0], both[1])


def _inputs(
    network: Network, codes: Tensor, concepts: Tensor, source: str, beta: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, concepts and β in the network's dtype and on its device."""
    shift = network.bn_shift(source)
    if codes.ndim != 3 or concepts.shape != (codes.shape[-1], len(shift)):
        raise ValueError(
            f"codes (N, HW, k) {tuple(codes.shape)} and concepts (k, C) {tuple(concepts.shape)} "
            f"do not fit {source} with {len(shift)} channels"
        )
    for name, given in (("codes", codes), ("concepts", concepts)):
        if not torch.isfinite(given).all():
            raise ValueError(f"{name} hold NaN or infinite values")
    return codes.to(shift), concepts.to(shift), shift if beta is None else beta.to(shift)


def _fitting(scores: Tensor, codes: Tensor) -> None:
    if scores.shape != (len(codes), codes.shape[-1]) or scores.isnan().any():
        raise ValueError(
            f"scores {tuple(scores.shape)}: expected {(len(codes), codes.shape[-1])}, no NaN"
        )


def _class_value(logits: Tensor, label: int, score: str) -> Tensor:
    if score == "agreement":
        return (logits.argmax(dim=1) == label).to(logits)
    return (logits.softmax(dim=1) if score == "probability" else logits)[:, label]


def _directions(targets: Tensor, by_class: bool, like: Tensor) -> Tensor:
    """Unit vectors (T, D) of one picture's targets, in the space of the response (..., D)."""
    if by_class:
        return torch.nn.functional.one_hot(targets, like.shape[-1]).to(like)
    return torch.nn.functional.normalize(targets.to(like), dim=1)

"""Generalized Integrated Gradients (GIG): what a concept brings to later concepts and classes.

Equations 3–7 of the paper, in the form that takes no derivative by a code. For a value T of the
network above block a, such as ``T(X) = Σ_i ⟨w_i, v̄_t⟩`` with w = F_ab(X), one gradient by the
pre-activation,

    G = ∫₀¹ ∂T/∂X (β + α·UV) dα        shape (HW, C),

serves every position and concept: ``GIG(v_q|p → v_t) = u_pq · ⟨G_p, v_q⟩``. The cost is
(quadrature points) × (targets) backward passes, whatever the number of concepts.

Functions here take tensors: what chapter 4 shows. :func:`.attribute` asks them of a
decomposition.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import Network, exact_convolutions

RULES = (
    "gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid",
    "endpoint",
)  # fmt: skip
"""Quadrature rules with a fixed number of points: Captum's, and none at all."""

MAX_POINTS = 1024
_INTERVALS = 6
"""Of a path, to begin with."""
_HALVED = 2
"""Intervals of a picture that are halved at a time."""
_FIRST = 1e-6
"""Where a path begins, of its length: at 0 itself a ReLU's derivative is 0 by convention."""
_ROUNDING = 8
"""A target that changes by no more units of rounding than this has no relevance to hand out."""

BASELINES = {"beta": 1.0, "zero": 0.0}
"""Where the path begins, as a multiple of β: eq. 9's "no concepts", or eq. 3 to the letter."""

WithDelta: TypeAlias = tuple[Tensor, Tensor]
Classes: TypeAlias = Tensor | Sequence[int] | Sequence[Sequence[int]]


def gig(
    network: Network, codes: Tensor, concepts: Tensor, source: str, target: str,
    target_vectors: Tensor, *, beta: Tensor, **options: Any,
) -> Any:  # fmt: skip
    """Attribute concepts of a later block to those of an earlier one (eqs. 4 and 5).

    Parameters
    ----------
    codes, concepts, source
        U, V and the block a that they belong to; see :func:`integrate`.
    target
        Name of the block b, after the source.
    target_vectors
        (T, C_b), or (N, T, C_b) where each picture has its own; made unit vectors here.
    beta
        β of eq. 9, (C,), that the codes were found with.
    **options
        ``points``, ``positions``, ``baseline`` and the other options of :func:`integrate`.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        (T, k), or (T, HW, k) with ``positions=True``; N first for several pictures. With
        ``return_convergence_delta=True`` also the delta (T,).

    Raises
    ------
    KeyError
        If a block is unknown.
    ValueError
        If the target does not come after the source, a target vector is zero or does not fit, and
        where :func:`integrate` raises it.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(), device="cpu")
    >>> u, v, targets = torch.ones(16, 3), torch.randn(3, 128), torch.randn(2, 256)
    >>> gig(network, u, v, "layer2.1", "layer3.0", targets, beta=torch.zeros(128), points=2).shape
    torch.Size([2, 3])
    """
    segment = network.segment(source, target)
    vectors = _like(network, target_vectors, "target_vectors")
    _per_picture(vectors.shape[:-1], "target_vectors", codes)
    if vectors.shape[-1] != segment.target_channels:
        raise ValueError(
            f"target_vectors have {vectors.shape[-1]} channels, {target} has "
            f"{segment.target_channels}"
        )
    norms = vectors.norm(dim=-1, keepdim=True)
    if (norms == 0).any():
        raise ValueError("target_vectors: a zero vector has no direction")
    unit = vectors / norms

    def value(x: Tensor, rows: Tensor) -> Tensor:
        summed = segment(x).sum(dim=1)
        if unit.ndim == 2:
            return summed @ unit.T
        return torch.einsum("bc,btc->bt", summed, unit[rows])

    given = _fitting(network, source, codes, concepts, beta)
    return integrate(value, *given, **options)


def class_relevance(
    network: Network, codes: Tensor, concepts: Tensor, source: str, classes: Classes, *,
    beta: Tensor, output: str = "logit", **options: Any,
) -> Any:  # fmt: skip
    """Relevance of a block's concepts for classes (eq. 7).

    Parameters
    ----------
    classes
        (T,) class numbers, or (N, T) where each picture has its own.
    output
        ``"logit"`` or ``"probability"``. Section 3.3 says probability; logits do not saturate and
        do not fall because another class rises, so they are the default.

    Raises
    ------
    ValueError
        Also if the network does not have a class.

    Notes
    -----
    The other parameters, what is returned and what is raised are those of :func:`gig`.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> u, v, beta = torch.ones(16, 3), torch.randn(3, 128), network.bn_shift("layer2.1")
    >>> relevance, delta = class_relevance(
    ...     network, u, v, "layer2.1", [4], beta=beta, points=8, return_convergence_delta=True
    ... )
    >>> relevance.shape, delta.shape
    (torch.Size([1, 3]), torch.Size([1]))
    """
    choice(output, "output", "logit", "probability")
    wanted = torch.as_tensor(classes, device=network.device)
    if wanted.is_floating_point() or wanted.numel() == 0:
        raise ValueError("classes: expected class numbers (T,) or (N, T)")
    _per_picture(wanted.shape, "classes", codes)
    if wanted.min() < 0 or wanted.max() >= network.n_classes:
        raise ValueError(f"classes {wanted.tolist()} leave 0 … {network.n_classes - 1}")
    segment = network.segment(source)

    def value(x: Tensor, rows: Tensor) -> Tensor:
        logits = segment(x)
        values = logits if output == "logit" else logits.softmax(dim=1)
        return values[:, wanted] if wanted.ndim == 1 else values.gather(1, wanted[rows])

    return integrate(value, *_fitting(network, source, codes, concepts, beta), **options)


def integrate(
    value: Callable[[Tensor, Tensor], Tensor], codes: Tensor, concepts: Tensor, beta: Tensor, *,
    baseline: str = "beta", points: int | None = None, rule: str = "gausslegendre",
    positions: bool = False, batch_size: int = 16, tolerance: float = 0.01,
    return_convergence_delta: bool = False, rest: Tensor | None = None,
) -> Any:  # fmt: skip
    """Attribute any values that depend on a block's PFVs to its concepts (eqs. 3 and 4).

    Parameters
    ----------
    value
        (PFVs of the block (B, HW, C), number of each one's picture (B,)) → (B, T).
    codes
        U, (HW, k) of one picture or (N, HW, k); positions are row-major, or tokens.
    concepts
        V, concept vectors as rows (k, C).
    beta
        β of eq. 9, (C,).
    baseline
        ``"beta"``: the path β + α·UV, from "no concepts" to the reconstruction of eq. 9.
        ``"zero"``: the path α·UV of eq. 3 to the letter, without β at either end.
    points
        So many points of a fixed rule. By default as many as a ``tolerance`` takes: the trapezoid
        rule on 6 intervals, of which those whose own gap is largest are halved, because the
        change of T across an interval is known. No point is run twice.
    rule
        The fixed rule: ``"gausslegendre"``, Captum's ``"riemann_left"``, ``"riemann_right"``,
        ``"riemann_middle"`` and ``"riemann_trapezoid"`` (its weights sum to (n−1)/n), or
        ``"endpoint"``: gradient × code at the end of the path, which is no integral.
    positions
        Keep the attribution of every position (eq. 4) instead of their sum (eq. 5).
    batch_size
        How many points × pictures pass the network at once; bounds the memory.
    tolerance
        Without ``points``: the delta of every picture and target is at most this fraction of the
        target's change along the path. A warning names those that :data:`MAX_POINTS` are not
        enough for, or that change by no more than rounding does, and says how far off they are.
        Targets that are there already are not run again.
    return_convergence_delta
        Return also, as Captum does, the sum of the attributions minus the target's change.
    rest
        ε of eq. 1, (HW, C) or (N, HW, C): what the concepts leave of X. With it the path ends in X
        itself, and the rest is one more source: attributions add up to the network's own change.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        As :func:`gig`, with k + 1 columns where there is a rest, whose own is the last; in the
        dtype and on the device of the codes.

    Raises
    ------
    ValueError
        If shapes do not fit, or an option is unknown.

    Examples
    --------
    >>> u, v = torch.ones(4, 2), torch.eye(3)[:2]
    >>> first = lambda x, rows: x.sum(dim=1)[:, :1]  # the first channel of all positions
    >>> integrate(first, u, v, torch.zeros(3))
    tensor([[4., 0.]])
    >>> integrate(first, u, v, torch.zeros(3), rest=torch.full((4, 3), 0.25))
    tensor([[4., 0., 1.]])
    """
    choice(baseline, "baseline", *BASELINES)
    choice(rule, "rule", *RULES)
    if codes.ndim not in (2, 3) or concepts.ndim != 2 or codes.shape[-1] != len(concepts):
        raise ValueError(
            f"codes (…, HW, k) {tuple(codes.shape)} and concepts (k, C) {tuple(concepts.shape)} "
            "do not fit"
        )
    if concepts.shape[1:] != beta.shape:
        raise ValueError(
            f"concepts have {concepts.shape[1]} channels, beta has {tuple(beta.shape)}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, not {batch_size}")
    if rest is not None and rest.shape != (*codes.shape[:-1], concepts.shape[1]):
        raise ValueError(f"a rest of {tuple(rest.shape)} does not fit codes {tuple(codes.shape)}")
    single = codes.ndim == 2
    u = codes[None] if single else codes
    whole, origin = u @ concepts, beta * BASELINES[baseline]
    left: list[Tensor | None] = [None] * len(u)
    if rest is not None:
        left = [*(rest[None] if single else rest).to(u)]
        whole = whole + rest.to(u)
    contractions = [_Contraction(*each, concepts, positions) for each in zip(u, left, strict=True)]

    @exact_convolutions()
    def run(pairs: list[Pair], wanted: list[int] | None) -> list[tuple[Pair, Tensor, Tensor]]:
        """For pictures and α: T, and what concepts bring there to the wanted targets, or to all."""
        results = []
        for part in (pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)):
            rows = torch.tensor([n for n, _ in part], device=whole.device)
            at = whole.new_tensor([alpha for _, alpha in part])[:, None, None]
            x = (origin + at * whole[rows]).requires_grad_()
            with torch.set_grad_enabled(wanted != []):
                values = value(x, rows)
                targets = range(values.shape[1]) if wanted is None else wanted
                gradients = [
                    torch.autograd.grad(values[:, t].sum(), x, retain_graph=t != targets[-1])[0]
                    for t in targets
                ]
            for i, pair in enumerate(part):
                own = torch.stack([g[i] for g in gradients]) if gradients else whole.new_empty(0)
                results.append((pair, values[i].detach(), contractions[pair[0]](own)))
        return results

    if points is None and rule != "endpoint":
        if tolerance < 0:
            raise ValueError(f"tolerance must not be negative, got {tolerance}")
        sums = _by_need(run, len(u), tolerance)
    else:
        sums = _by_rule(run, len(u), *_points(rule, points))
    result = torch.stack([
        torch.stack([each.spread(row) for row in rows])
        for each, (rows, _) in zip(contractions, sums, strict=True)
    ])  # fmt: skip
    delta = torch.stack([rows.sum(1) - change for rows, change in sums])
    if single:
        result, delta = result[0], delta[0]
    return (result, delta) if return_convergence_delta else result


Pair: TypeAlias = tuple[int, float]
_Run: TypeAlias = Callable[[list[Pair], list[int] | None], list[tuple[Pair, Tensor, Tensor]]]


def _by_rule(
    run: _Run, pictures: int, alphas: Sequence[float], weights: Sequence[float]
) -> list[WithDelta]:
    """Each picture's attributions (T, m) and changes (T,), at the points of a rule."""
    ends = {pair: values for pair, values, _ in run(_pairs(range(pictures), (0.0, 1.0)), [])}
    weight, totals = dict(zip(alphas, weights, strict=True)), dict[int, Tensor]()
    for (n, alpha), _, brings in run(_pairs(range(pictures), alphas), None):
        totals[n] = totals.get(n, 0) + weight[alpha] * brings
    return [(totals[n], ends[n, 1.0] - ends[n, 0.0]) for n in range(pictures)]


def _by_need(run: _Run, pictures: int, tolerance: float) -> list[WithDelta]:
    """As :func:`_by_rule`, at as many points as the tolerance takes.

    The trapezoid rule, of which those intervals are halved whose own completeness gap is largest:
    a path is bent where ReLUs switch, and nearly straight elsewhere.
    """
    asked = _pairs(range(pictures), [_FIRST, *(i / _INTERVALS for i in range(1, _INTERVALS + 1))])
    wanted: list[int] | None = None
    values: list[dict[float, Tensor]] = [{} for _ in range(pictures)]
    brought: list[dict[float, Tensor]] = [{} for _ in range(pictures)]
    sums: list[dict[int, Tensor]] = [{} for _ in range(pictures)]
    missed: list[str] = []
    while asked:
        for (n, alpha), value, brings in run(asked, wanted):
            if alpha == _FIRST:  # stands for 0, to which the value goes on straight
                alpha, value = 0.0, value - _FIRST * brings.sum(dim=1)
            values[n][alpha] = value
            # A target that is there already gets no more rows, and needs none.
            rows = brings.new_zeros(len(value), brings.shape[1])
            rows[slice(None) if wanted is None else wanted] = brings
            brought[n][alpha] = rows
        asked, still = [], set[int]()
        for n in range(pictures):
            open_ = [t for t in range(len(values[n][1.0])) if t not in sums[n]]
            if not open_:
                continue
            alphas = sorted(values[n])
            at = values[n][1.0].new_tensor(alphas)
            there = torch.stack([values[n][a] for a in alphas])[:, open_]
            brings = torch.stack([brought[n][a] for a in alphas])[:, open_]
            slope, width = brings.sum(dim=2), at.diff()[:, None]
            gaps = width * (slope[1:] + slope[:-1]) / 2 - there.diff(dim=0)
            change = (there[-1] - there[0]).abs()
            off = gaps.sum(dim=0).abs()
            done = off <= tolerance * change
            # Rounding alone moves a target that hardly changes: more points do not end that.
            even = change <= _ROUNDING * torch.finfo(change.dtype).eps * there.abs().amax(dim=0)
            short = ~(done | even)
            middles: list[float] = []
            if short.any():
                worst = (gaps / change)[:, short].square().sum(dim=1)
                chosen = worst.topk(min(_HALVED, len(worst))).indices.tolist()
                middles = [(alphas[i] + alphas[i + 1]) / 2 for i in chosen]
            last = len(alphas) >= MAX_POINTS or bool({*middles} & {*alphas})
            for i, t in enumerate(open_):
                if last or not short[i]:
                    sums[n][t] = torch.trapezoid(brings[:, i], at, dim=0)
                    told = f"picture {n}, target {t} (off by {off[i]:.1e} of {change[i]:.1e})"
                    missed += [] if done[i] else [told]
            still |= (left := set(open_) - set(sums[n]))
            asked += [(n, alpha) for alpha in middles if left]
        wanted = sorted(still)
    if missed:
        warnings.warn(
            f"tolerance {tolerance} was not reached for {len(missed)} targets, first "
            f"{', '.join(missed[:5])}: "
            f"{MAX_POINTS} points are not enough, or the target hardly changes along the path",
            stacklevel=4,
        )
    return [
        (torch.stack([rows[t] for t in sorted(rows)]), values[n][1.0] - values[n][0.0])
        for n, rows in enumerate(sums)
    ]


def _pairs(pictures: Iterable[int], alphas: Iterable[float]) -> list[Pair]:
    return list(product(pictures, alphas))


def _points(rule: str, points: int | None) -> tuple[list[float], list[float]]:
    """Places on the path, and weights, of a quadrature rule."""  # noqa: DOC501
    if rule == "endpoint":
        return [1.0], [1.0]
    # Captum imports much that nothing else here needs.
    from captum.attr._utils.approximation_methods import approximation_parameters

    if points is None or points < 2:  # Captum's rules assert it
        raise ValueError(f"points must be 2 or more, not {points}")
    steps, alphas = approximation_parameters(rule)
    # Captum rounds weights to float32 whatever the dtype; done here too, so that the two can be
    # compared in float64. It is 6e-8 of a weight, far below any rule's error.
    return list(alphas(points)), torch.tensor(steps(points), dtype=torch.float32).tolist()


class _Contraction:
    """u_pq · ⟨G_p, v_q⟩ for a picture's codes U (HW, k), at every position or summed over them.

    Where there is a rest ε (HW, C), ⟨G_p, ε_p⟩ comes last.
    """

    def __init__(self, u: Tensor, rest: Tensor | None, v: Tensor, positions: bool):
        self.codes, self.vectors, self.positions, self.rest = u, v, positions, rest
        place, concept = u.nonzero(as_tuple=True)  # quick along rows, and then sorted
        self.concept, order = concept.sort(stable=True)
        self.place = place[order]
        self.values = u[self.place, self.concept]
        self.used, self.column, counts = self.concept.unique_consecutive(
            return_inverse=True, return_counts=True
        )
        self.starts = F.pad(counts.cumsum(0), (1, 0))[:-1]

    def __call__(self, gradients: Tensor) -> Tensor:
        """G (T, HW, C) → (T, m): m non-zero codes, or concepts in use where they are summed."""
        if not len(gradients):
            return gradients
        brought = self._at_positions(gradients) if self.positions else self._summed(gradients)
        if self.rest is None:
            return brought
        of_rest = (gradients * self.rest).sum(dim=2)
        return torch.cat([brought, of_rest if self.positions else of_rest.sum(1, True)], dim=1)

    def _at_positions(self, gradients: Tensor) -> Tensor:
        # All products, of which codes pick some: far cheaper than to gather both sides of each.
        used = self.vectors[self.used].T
        return self.values * torch.stack([(g @ used)[self.place, self.column] for g in gradients])

    def _summed(self, gradients: Tensor) -> Tensor:
        # ⟨Σ_p u_pq G_p, v_q⟩: one sum over the positions that use a concept, for all targets.
        shift = torch.arange(len(gradients), device=self.place.device)[:, None]
        summed = F.embedding_bag(
            (self.place + shift * gradients.shape[1]).flatten(), gradients.flatten(0, 1),
            (self.starts + shift * len(self.place)).flatten(), mode="sum",
            per_sample_weights=self.values.repeat(len(gradients)),
        )  # fmt: skip
        return (summed.unflatten(0, (len(gradients), -1)) * self.vectors[self.used]).sum(dim=2)

    def spread(self, row: Tensor) -> Tensor:
        """(m,) to (HW, k), or to (k,); with a rest to k + 1."""
        if self.positions:
            count = len(self.values)
            spread = torch.zeros_like(self.codes)
            spread[self.place, self.concept] = row[:count]
            left = row[count:, None]
        else:
            count = len(self.used)
            spread = self.codes.new_zeros(self.codes.shape[1])
            spread[self.used] = row[:count]
            left = row[count:]
        return spread if self.rest is None else torch.cat([spread, left], dim=-1)


def _fitting(
    network: Network, source: str, codes: Tensor, concepts: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, concepts and β in the network's dtype and on its device."""  # noqa: DOC501
    u, v, start = (
        _like(network, given, name)
        for name, given in (("codes", codes), ("concepts", concepts), ("beta", beta))
    )
    if (channels := network.channels(source)) != v.shape[-1]:
        raise ValueError(f"{source} has {channels} channels, concepts have {v.shape[-1]}")
    return u, v, start


def _like(network: Network, given: Tensor, name: str) -> Tensor:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(given).__name__}")
    if not torch.isfinite(given).all():
        raise ValueError(f"{name} hold NaN or infinite values")
    return given.detach().to(network.device, network.dtype)


def _per_picture(shape: tuple[int, ...], name: str, codes: Tensor) -> None:
    """Targets are (T,) for all pictures, or (N, T) beside codes (N, HW, k)."""  # noqa: DOC501
    if len(shape) == 1 or (len(shape) == 2 and codes.ndim == 3 and shape[0] == len(codes)):
        return
    raise ValueError(f"{name} of {tuple(shape)} targets do not fit codes {tuple(codes.shape)}")


def choice(value: str, name: str, *allowed: str) -> None:
    """Refuse an option that there is not; not in the paper.

    Raises
    ------
    ValueError
        The message lists what there is.

    Examples
    --------
    >>> choice("all", "axis", "all", "active")
    """
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}: choose {' or '.join(allowed)}")

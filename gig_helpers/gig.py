"""Generalized Integrated Gradients (GIG): what a concept brings to later concepts and classes.

Equations 3–7 of the paper, in the form that takes no derivative by a code. For a value T of the
network above block a, such as ``T(X) = Σ_i ⟨w_i, v̄_t⟩`` with w = F_ab(X), one gradient by the
pre-activation,

    G = ∫₀¹ ∂T/∂X (β + α·UV) dα        shape (HW, C),

serves every position and concept: ``GIG(v_q|p → v_t) = u_pq · ⟨G_p, v_q⟩``. The cost is
(quadrature points) × (targets) backward passes, whatever the number of concepts.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor

from .network import Network

MAX_POINTS = 1024

BASELINES = {"beta": 1.0, "zero": 0.0}
"""Where the path begins, as a multiple of β: eq. 9's "no concepts", or eq. 3 to the letter."""

WithDelta: TypeAlias = tuple[Tensor, Tensor]
Classes: TypeAlias = Tensor | Sequence[int] | Sequence[Sequence[int]]


# fmt: off
@overload
def gig(network: Network, codes: Tensor, concepts: Tensor, source: str, target: str,
        target_vectors: Tensor, *, return_convergence_delta: Literal[True],
        **options: Any) -> WithDelta: ...
@overload
def gig(network: Network, codes: Tensor, concepts: Tensor, source: str, target: str,
        target_vectors: Tensor, **options: Any) -> Tensor: ...
# fmt: on
def gig(
    network: Network, codes: Tensor, concepts: Tensor, source: str, target: str,
    target_vectors: Tensor, **options: Any,
) -> Tensor | WithDelta:  # fmt: skip
    """Attribute concepts of a later block to those of an earlier one (eqs. 4 and 5).

    Parameters
    ----------
    codes, concepts, source
        U, V and the block a that they belong to; see :func:`attribute`.
    target
        Name of the block b, after the source.
    target_vectors
        (T, C_b), or (N, T, C_b) where each picture has its own; made unit vectors here.
    **options
        ``points``, ``positions``, ``baseline`` and the other options of :func:`attribute`.

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
        where :func:`attribute` raises it.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(), device="cpu")
    >>> u, v, targets = torch.ones(16, 3), torch.randn(3, 128), torch.randn(2, 256)
    >>> gig(network, u, v, "layer2.1", "layer3.0", targets, points=2).shape  # (T, k)
    torch.Size([2, 3])
    """
    network.span(source, target)
    vectors = _like(network.bn_shift(target), target_vectors, "target_vectors")
    _per_picture(vectors.shape[:-1], "target_vectors", codes)
    if vectors.shape[-1] != network.channels(target):
        raise ValueError(
            f"target_vectors have {vectors.shape[-1]} channels, {target} has "
            f"{network.channels(target)}"
        )
    norms = vectors.norm(dim=-1, keepdim=True)
    if (norms == 0).any():
        raise ValueError("target_vectors: a zero vector has no direction")
    unit = vectors / norms

    def value(x: Tensor, rows: Tensor) -> Tensor:
        summed = network.propagate(x, source, target).sum(dim=(2, 3))
        if unit.ndim == 2:
            return summed @ unit.T
        return torch.einsum("bc,btc->bt", summed, unit[rows])

    return attribute(network, value, codes, concepts, source, **options)


# fmt: off
@overload
def class_relevance(network: Network, codes: Tensor, concepts: Tensor, source: str,
                    classes: Classes, *, output: str = "logit",
                    return_convergence_delta: Literal[True], **options: Any) -> WithDelta: ...
@overload
def class_relevance(network: Network, codes: Tensor, concepts: Tensor, source: str,
                    classes: Classes, *, output: str = "logit", **options: Any) -> Tensor: ...
# fmt: on
def class_relevance(
    network: Network, codes: Tensor, concepts: Tensor, source: str, classes: Classes, *,
    output: str = "logit", **options: Any,
) -> Tensor | WithDelta:  # fmt: skip
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
    >>> u, v = torch.ones(16, 3), torch.randn(3, 128)
    >>> found, delta = class_relevance(
    ...     network, u, v, "layer2.1", [4], points=8, return_convergence_delta=True
    ... )
    >>> found.shape, delta.shape
    (torch.Size([1, 3]), torch.Size([1]))
    """
    choice(output, "output", "logit", "probability")
    wanted = torch.as_tensor(classes, device=network.bn_shift(source).device)
    if wanted.is_floating_point() or wanted.numel() == 0:
        raise ValueError("classes: expected class numbers (T,) or (N, T)")
    _per_picture(wanted.shape, "classes", codes)

    def value(x: Tensor, rows: Tensor) -> Tensor:
        logits = network.propagate(x, source)
        if wanted.min() < 0 or wanted.max() >= logits.shape[1]:
            raise ValueError(f"classes {wanted.tolist()} leave 0 … {logits.shape[1] - 1}")
        values = logits if output == "logit" else logits.softmax(dim=1)
        return values[:, wanted] if wanted.ndim == 1 else values.gather(1, wanted[rows])

    return attribute(network, value, codes, concepts, source, **options)


def attribute(
    network: Network, value: Callable[[Tensor, Tensor], Tensor], codes: Tensor, concepts: Tensor,
    source: str, *, beta: Tensor | None = None, baseline: str = "beta", points: int | None = None,
    method: str = "gausslegendre", positions: bool = False, shape: tuple[int, int] | None = None,
    batch_size: int = 16, tolerance: float | None = None, return_convergence_delta: bool = False,
) -> Tensor | WithDelta:  # fmt: skip
    """Attribute any values of the network to the concepts of one block.

    Parameters
    ----------
    value
        (pre-activations of the source (B, C, H, W), number of each one's picture (B,)) → (B, T).
    codes
        U, (HW, k) of one picture or (N, HW, k); positions are row-major.
    concepts
        V, concept vectors as rows (k, C).
    beta
        β of eq. 9, (C,); by default ``network.bn_shift(source)``.
    baseline
        ``"beta"``: the path β + α·UV, from "no concepts" to the reconstruction of eq. 9.
        ``"zero"``: the path α·UV of eq. 3 to the letter, without β at either end.
    points
        Quadrature points. By default as many as a ``tolerance`` of 1 % takes, from 32 on: between
        blocks of the book's chain 32 are mostly enough, but a path has kinks, and where gains and
        losses almost cancel it takes more.
    method
        ``"gausslegendre"``, Captum's ``"riemann_left"``, ``"riemann_right"``,
        ``"riemann_middle"`` and ``"riemann_trapezoid"`` (its weights sum to (n−1)/n), or
        ``"endpoint"``: gradient × code at the end of the path, which is no integral.
    positions
        Keep the attribution of every position (eq. 4) instead of their sum (eq. 5).
    shape
        (H, W) of the source block; by default square.
    batch_size
        How many points × pictures pass the network at once; bounds the memory.
    tolerance
        If given, ``points`` is doubled until the delta of every picture and target is at most
        this fraction of the target's change along the path, or until ``MAX_POINTS`` (a warning).
        Targets that are there already are not run again.
    return_convergence_delta
        Return also, as Captum does, the sum of the attributions minus the target's change.

    Returns
    -------
    Tensor or (Tensor, Tensor)
        As :func:`gig`; in the network's dtype and on its device.

    Raises
    ------
    KeyError
        If the block is unknown.
    ValueError
        If shapes do not fit, something is NaN or infinite, or an option is unknown.
    """
    choice(baseline, "baseline", *BASELINES)
    shift = network.bn_shift(source)
    start = shift if beta is None else _like(shift, beta, "beta")
    u, v = _like(shift, codes, "codes"), _like(shift, concepts, "concepts")
    if u.ndim not in (2, 3) or v.ndim != 2 or u.shape[-1] != len(v):
        raise ValueError(
            f"codes (…, HW, k) {tuple(u.shape)} and concepts (k, C) {tuple(v.shape)} do not fit"
        )
    if v.shape[1:] != shift.shape or start.shape != shift.shape:
        raise ValueError(
            f"{source} has {len(shift)} channels, concepts have {v.shape[1]}, beta has "
            f"{tuple(start.shape)}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, not {batch_size}")
    single = u.ndim == 2
    u = u[None] if single else u
    origin = (start * BASELINES[baseline])[:, None, None]
    maps = as_maps(u @ v, shape)

    def path(alphas: Sequence[float]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of points: pre-activations, their pictures, their place on the path."""
        at = maps.new_tensor(alphas)
        for pairs in torch.arange(len(maps) * len(at), device=maps.device).split(batch_size):
            rows, places = pairs // len(at), pairs % len(at)
            yield origin + at[places, None, None, None] * maps[rows], rows, places

    if points is None:
        points, tolerance = 32, 0.01 if tolerance is None else tolerance
    if method == "endpoint":
        tolerance = None
    with torch.no_grad():
        ends = torch.cat([value(x, rows) for x, rows, _ in path((0.0, 1.0))])
    change = ends[1::2] - ends[0::2]
    size = u.shape[1:] if positions else u.shape[2:]
    result, delta = u.new_empty(*change.shape, *size), torch.empty_like(change)
    open_ = torch.ones_like(change, dtype=torch.bool)  # a picture's result is its own, however run
    while True:
        alphas, steps = _rule(method, points)
        wanted = open_.any(dim=0).nonzero()[:, 0].tolist()
        gradient = _integrate(value, path(alphas), maps.new_tensor(steps), maps, wanted)
        found = _contract(gradient, u, v, positions)
        for t, one in zip(wanted, found.unbind(dim=1), strict=True):
            rows = open_[:, t]
            result[rows, t] = one[rows]
            delta[rows, t] = one[rows].flatten(1).sum(dim=1) - change[rows, t]
        if tolerance is None or not (open_ := delta.abs() > tolerance * change.abs()).any():
            break
        if 2 * points > MAX_POINTS:
            text = f"tolerance {tolerance} was not reached with {points} points"
            warnings.warn(text, stacklevel=2)
            break
        points *= 2
    if single:
        result, delta = result[0], delta[0]
    return (result, delta) if return_convergence_delta else result


def _rule(method: str, points: int) -> tuple[list[float], list[float]]:
    """Places on the path, and weights, of a quadrature rule."""  # noqa: DOC501
    if method == "endpoint":
        return [1.0], [1.0]
    # Captum imports much that nothing else here needs.
    from captum.attr._utils.approximation_methods import approximation_parameters

    if points < 2:  # Captum's rules assert it
        raise ValueError(f"points must be 2 or more, not {points}")
    try:
        steps, alphas = approximation_parameters(method)
    except ValueError as error:
        raise ValueError(f"unknown method {method!r}") from error
    # Captum rounds weights to float32 whatever the dtype; done here too, so that the two can be
    # compared in float64. It is 6e-8 of a weight, far below any rule's error.
    return list(alphas(points)), torch.tensor(steps(points), dtype=torch.float32).tolist()


def _integrate(
    value: Callable[[Tensor, Tensor], Tensor], path: Iterator[tuple[Tensor, Tensor, Tensor]],
    weights: Tensor, maps: Tensor, targets: Sequence[int],
) -> Tensor:  # fmt: skip
    """G of the module's formula for some of the targets: (T, N, HW, C)."""
    total = [torch.zeros_like(maps) for _ in targets]
    for x, rows, places in path:
        x.requires_grad_()
        with torch.enable_grad():
            values = (weights[places] @ value(x, rows)).unbind()
        for t, into in zip(targets, total, strict=True):  # one graph for all, freed with the last
            (gradient,) = torch.autograd.grad(values[t], x, retain_graph=t != targets[-1])
            into.index_add_(0, rows, gradient)
    return torch.stack(total).flatten(3).transpose(2, 3).contiguous()


def _contract(gradient: Tensor, u: Tensor, v: Tensor, positions: bool) -> Tensor:
    """u_pq · ⟨G_p, v_q⟩ of the concepts in use; where positions are summed, ⟨Σ_p u_pq G_p, v_q⟩."""
    targets, pictures = gradient.shape[:2]
    if positions:
        n, p, q = u.nonzero(as_tuple=True)
        result = u.new_zeros(pictures, targets, *u.shape[1:])
        for part in torch.arange(len(q), device=u.device).split(max(1, 2**18 // v.shape[1])):
            a, b, c = n[part], p[part], q[part]
            concept, values = v[c], u[a, b, c]
            for t, g in enumerate(gradient):
                result[a, t, b, c] = values * (g[a, b] * concept).sum(dim=1)
        return result
    used = u.flatten(0, 1).any(dim=0).nonzero()[:, 0]
    some = v[used]
    result = u.new_zeros(pictures, targets, len(v))
    for row, one in enumerate(u):
        sparse = one[:, used].T.to_sparse()
        for t in range(targets):
            result[row, t, used] = ((sparse @ gradient[t, row]) * some).sum(dim=1)
    return result


def as_maps(x: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
    """X of eq. 3 as the network takes it: (N, HW, C), row-major, to maps (N, C, H, W).

    By default H = W.

    Raises
    ------
    ValueError
        If there are not H · W positions.
    """
    height, width = shape or (isqrt(x.shape[1]),) * 2
    if height * width != x.shape[1]:
        raise ValueError(f"codes have {x.shape[1]} positions, not {height}×{width}: give shape=")
    # A permuted view is channels_last, in which CPU and GPU convolve fastest.
    return x.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def _like(reference: Tensor, given: Tensor, name: str) -> Tensor:
    if not isinstance(given, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(given).__name__}")
    if not torch.isfinite(given).all():
        raise ValueError(f"{name} hold NaN or infinite values")
    return given.detach().to(reference)


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
    """
    if value not in allowed:
        raise ValueError(f"unknown {name} {value!r}: choose {' or '.join(allowed)}")

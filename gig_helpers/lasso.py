"""The Lasso (eq. 2) for many PFVs at once, with a bound on how far each is from its optimum."""

import math
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from .data import paper

_CHUNK = 2**24
"""Floats that the largest temporary tensor may hold: 64 MB in single precision."""
_NEW = 8
"""Concepts that join a working set at a time, at least; also C / 128, and …"""
_GROWTH = 0.2
"""… this share of the concepts in use."""
_DAMPING = (0.1, 0.03, 0.01, 0.001, 0.0)
"""What the Newton steps of a round add to the curvature, relative to a concept's own: with many
concepts alike, the first steps find which to drop; the last one is exact."""
_LENGTHS = 5
"""Lengths that are tried for each Newton step."""


def lasso_codes(
    x: Tensor, vectors: Tensor, lam: float, *, beta: Tensor | None = None, tol: float = 1e-5,
    max_iter: int = 200,
) -> Tensor:  # fmt: skip
    """Signed codes u that minimise ½‖x − β − uV‖² + λ‖u‖₁ (eq. 2).

    All PFVs at once, each on a small working set of concepts that grows until the duality gap
    over all concepts is small enough (as in Massias et al., 2018). On a working set, projected
    Newton steps (Bertsekas, 1982): few and large operations, which suit a GPU too.

    Parameters
    ----------
    x
        PFVs (..., C).
    vectors
        Concept vectors V (k, C).
    lam
        λ > 0, in eq. 2's scale.
    beta
        (C,) of eq. 9; ``None`` is eq. 1's 0.
    tol
        Relative duality gap to reach: the objective is at most so much above the optimum.
    max_iter
        Times that a PFV's working set may be looked at, in each precision that it takes.

    Returns
    -------
    Tensor
        Codes (..., k), exactly 0 where a concept is not used.

    Raises
    ------
    ValueError
        If shapes do not fit, an input is empty or not finite, or λ is not positive.

    Warns
    -----
    ConvergenceWarning
        If some PFV does not reach ``tol``.

    Examples
    --------
    >>> lasso_codes(torch.tensor([3.0, -2.0, 0.5]), torch.eye(3), 1.0)  # soft thresholding
    tensor([ 2., -1.,  0.])
    """
    y = _centred(x, vectors, beta)
    if not (math.isfinite(lam) and lam > 0):
        raise ValueError(f"lam must be a positive number, got {lam}")
    flat = y.reshape(-1, y.shape[-1])
    start = flat.new_zeros(len(flat), len(vectors))
    return _codes(flat, vectors, start, lam, tol, max_iter).reshape(*y.shape[:-1], -1)


def duality_gap(
    x: Tensor, vectors: Tensor, codes: Tensor, lam: float, *, beta: Tensor | None = None
) -> Tensor:
    """How far codes can be above eq. 2's optimum, relative to their objective; shape (...,).

    The dual point is the residual, scaled into the feasible set ``max_j |⟨v_j, θ⟩| ≤ λ``.

    Raises
    ------
    ValueError
        As :func:`lasso_codes`.

    Examples
    --------
    >>> x, best, none = torch.tensor([3.0]), torch.tensor([2.0]), torch.tensor([0.0])
    >>> duality_gap(x, torch.eye(1), best, 1.0), duality_gap(x, torch.eye(1), none, 1.0)
    (tensor(0.), tensor(0.4444))
    """
    y = _centred(x, vectors, beta)
    residual = y - codes @ vectors
    return _relative_gap(y, residual, (residual @ vectors.T).abs().amax(-1), codes, lam)


def objective(
    x: Tensor, vectors: Tensor, codes: Tensor, lam: float, *, beta: Tensor | None = None
) -> Tensor:
    """Value of eq. 2 for each PFV, shape (...,).

    Examples
    --------
    >>> objective(torch.tensor([3.0]), torch.eye(1), torch.tensor([2.0]), 1.0)  # ½ · 1² + 1 · 2
    tensor(2.5000)
    """
    residual = _centred(x, vectors, beta) - codes @ vectors
    return 0.5 * residual.square().sum(-1) + lam * codes.abs().sum(-1)


def wanted_nonzeros(block: str, k: int, channels: int = 0) -> float:
    """Non-zero codes per PFV that λ is chosen for, where nothing else is asked: Table 1's count.

    For a block that is none of the table's stages C/32, and 2 at least: the table's counts lie
    between C/43 and C/20. Where there are fewer concepts than the paper's, a sixteenth of them is
    the most, and 2 at least: at most blocks more than PFVs left out pay for by an extended
    Bayesian criterion (Chen & Chen, 2008; chapter 3), so that reconstructions keep the answer.

    Parameters
    ----------
    channels
        C of the block.

    Raises
    ------
    KeyError
        If the block is of no stage that the table lists, and its channels are not given.

    Examples
    --------
    >>> wanted_nonzeros("layer4.2", 16384), wanted_nonzeros("layer4.2", 100)
    (105, 6.25)
    >>> wanted_nonzeros("blocks.3", 16384, channels=320)
    10.0
    """
    try:
        wanted: float = paper.nonzeros(block)
    except KeyError:
        if not channels:
            raise
        wanted = max(channels / 32, 2)
    return min(wanted, max(k / 16, 2), k / 4)


def lambda_for(
    x: Tensor, vectors: Tensor, nonzeros: float, *, beta: Tensor | None = None, rtol: float = 0.02
) -> float:
    """The λ of eq. 2 at which a PFV has so many non-zero codes on average.

    A few hundred PFVs are enough to choose it.

    Parameters
    ----------
    x, vectors, beta
        As :func:`lasso_codes`.
    nonzeros
        Wanted mean number, above 0; see :func:`wanted_nonzeros`.
    rtol
        Relative deviation of the mean number that is good enough.

    Raises
    ------
    ValueError
        If no λ gives that many: a PFV needs at most min(k, C).

    Examples
    --------
    >>> 2.0 <= lambda_for(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.eye(4), 2) < 4.0
    True
    """
    y = _centred(x, vectors, beta)
    most = min(vectors.shape)
    if not 0 < nonzeros <= most:
        raise ValueError(f"nonzeros must lie above 0 and at most min(k, C) = {most}: {nonzeros}")
    y = y.reshape(-1, y.shape[-1])
    largest = (y @ vectors.T).abs().amax(-1)
    if not largest.any():
        raise ValueError("every PFV equals beta, so all codes are 0 at any lam")
    # Counts fall roughly as a power of λ, so a secant on logarithms, kept inside the bracket.
    low, high = (0.0, math.inf), (float(largest.max()), 0.0)
    lam = float(largest.median()) / 2 or high[0] / 2
    codes, before = y.new_zeros(len(y), len(vectors)), (0.0, 0.0)
    for _ in range(40):
        # As near as codes are computed later: a looser solution has more of them.
        codes = _codes(y, vectors, codes, lam, tol=1e-5, max_iter=200)
        count = float((codes != 0).sum(-1).double().mean())
        if abs(count - nonzeros) <= rtol * nonzeros:
            return lam
        low, high = ((lam, count), high) if count > nonzeros else (low, (lam, count))
        if low[0] and high[1]:
            slope = math.log(high[0] / low[0]) / math.log(low[1] / high[1])
            middle = low[0] * (low[1] / nonzeros) ** slope
            # Off the ends, so that the bracket shrinks from both.
            share = (high[0] / low[0]) ** 0.1
            lam = min(max(middle, low[0] * share), high[0] / share)
        elif high[1] and before[1] and count > before[1]:
            # Beyond what is known counts go on as from the last λ to this one.
            power = math.log(lam / before[0]) / math.log(before[1] / count)
            before, lam = (lam, count), lam * min(0.95, max(0.5, (count / nonzeros) ** power))
        else:
            before, lam = (lam, count), lam * 2 if count > nonzeros else lam / 2
    # Among alike PFVs the count jumps, and may even rise with λ: look everywhere, be less exact.
    off = abs(count - nonzeros)
    for trial in torch.logspace(0, -4, 100).tolist():
        codes = _codes(y, vectors, codes, trial * float(largest.max()), tol=1e-5, max_iter=200)
        there = float((codes != 0).sum(-1).double().mean())
        if abs(there - nonzeros) < off:
            off, count, lam = abs(there - nonzeros), there, trial * float(largest.max())
    if off <= max(rtol, 0.1) * nonzeros:
        return lam
    raise ValueError(
        f"no lam gives {nonzeros} non-zeros: {count:.2f} at {lam:.3g}; "
        "give more PFVs or a larger rtol"
    )


def _centred(x: Tensor, vectors: Tensor, beta: Tensor | None) -> Tensor:
    if vectors.ndim != 2 or not vectors.numel():
        raise ValueError(f"vectors must be (k, C) and not empty, got {tuple(vectors.shape)}")
    if x.ndim < 1 or x.shape[-1] != vectors.shape[1] or not x.numel():
        raise ValueError(
            f"x must be (..., {vectors.shape[1]}), as the vectors, and not empty, "
            f"got {tuple(x.shape)}"
        )
    if beta is not None and beta.shape != vectors.shape[1:]:
        raise ValueError(f"beta must be ({vectors.shape[1]},), got {tuple(beta.shape)}")
    y = x if beta is None else x - beta
    for name, tensor in (("x − beta", y), ("vectors", vectors)):
        # The extremes are NaN where anything is; isfinite of all values takes ten times as long.
        if not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    return y


def _codes(
    y: Tensor, vectors: Tensor, start: Tensor, lam: float, tol: float, max_iter: int
) -> Tensor:
    """Lasso codes (n, k) of y (n, C), beginning from other codes."""
    codes = torch.empty_like(start)
    for rows in torch.arange(len(y), device=y.device).split(max(1, _CHUNK // len(vectors))):
        single = y.dtype == torch.float32
        rounds = min(60, max_iter) if single else max_iter
        codes[rows], stuck, gap = _solve(y[rows], vectors, start[rows], lam, tol, rounds)
        if len(stuck) and single:
            # Rounding may keep the gap of a few PFVs above a small tolerance.
            left = rows[stuck]
            solved, still, gap = _solve(
                y[left].double(), vectors.double(), codes[left].double(), lam, tol, max_iter
            )
            codes[left] = solved.to(codes)
            stuck = stuck[still]
        if len(stuck):
            warnings.warn(
                f"{len(stuck)} of {len(rows)} PFVs stopped at a relative duality gap of up to "
                f"{float(gap.max()):.1e}, above tol={tol:.1e}: raise lam or max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )
    return codes


def _solve(
    y: Tensor, vectors: Tensor, start: Tensor, lam: float, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lasso codes (n, k) of y (n, C); the rows that did not get to ``tol``, and their gaps."""
    codes, todo = torch.zeros_like(start), torch.arange(len(y), device=y.device)
    products = None  # ⟨v_i, v_j⟩ of all concepts
    # A working set: indices (n, m) of concepts, none twice in a row, and their codes.
    index = start.abs().topk(max(1, int((start != 0).sum(1).max())), dim=1).indices
    u = start.gather(1, index)
    for left in range(max_iter, -1, -1):
        residual = y - F.embedding_bag(index, vectors, per_sample_weights=u, mode="sum")
        gradient = residual @ vectors.T
        correlation = gradient.abs()
        gap = _relative_gap(y, residual, correlation.amax(1), u, lam)
        done = torch.nonzero(gap <= tol)[:, 0]
        codes[todo[done, None], index[done]] = u[done]
        # Were the concepts in use the only ones, would the gap be half of it or less?
        within = torch.where(u != 0, correlation.gather(1, index), 0).amax(1)
        settled = _relative_gap(y, residual, within, u, lam) <= 0.5 * gap
        open_ = torch.nonzero(~(gap <= tol))[:, 0]  # NaN is no solution
        todo, y, gradient, correlation, gap, settled, index, u = (
            tensor[open_] for tensor in (todo, y, gradient, correlation, gap, settled, index, u)
        )
        if not (left and len(todo)):
            break
        # Concepts in use stay; those that break |⟨v_j, residual⟩| ≤ λ most join them.
        used = int((u != 0).sum(1).max())
        kept = u.abs().topk(used, dim=1).indices
        index, u = index.gather(1, kept), u.gather(1, kept)
        joining = max(_NEW, y.shape[1] // 128, int(_GROWTH * used))
        joining = min(joining, len(vectors) - used)
        found = correlation.scatter_(1, index, -1).topk(joining, dim=1).indices
        index, u = torch.cat([index, found], 1), F.pad(u, (0, joining))
        parts, width = [], used + joining
        if products is None and len(vectors) ** 2 <= min(_CHUNK, len(todo) * width**2):
            products = vectors @ vectors.T  # cheaper of all once than of each working set
        rows = max(1, _CHUNK // (width * max(width, y.shape[1])))
        for part in torch.arange(len(todo), device=y.device).split(rows):
            here = index[part]
            if products is None:
                atoms = vectors[here]
                gram = atoms @ atoms.mT
            else:
                gram = products[here[:, :, None], here[:, None]]
            # More concepts would only hide which of those in use are too many.
            free = settled[part, None] | (torch.arange(width, device=y.device) < used)
            gram = gram * (free[:, :, None] & free[:, None])
            slope = gradient[part].gather(1, here) * free
            parts.append(_descend(slope, gram, u[part], lam))
        u = torch.cat(parts)
    codes[todo[:, None], index] = u
    return codes, todo, gap


def _descend(gradient: Tensor, gram: Tensor, u: Tensor, lam: float) -> Tensor:
    """Lower eq. 2 for a batch of small problems, from codes u (n, m): gram is (n, m, m).

    The gradient (n, m) is ⟨v_j, residual⟩, by which the square falls.

    Each step goes towards the optimum for the present signs, where a code that is 0 has the sign
    that lowers eq. 2; codes that would change their sign stop at 0. Of some lengths, from where
    the first code does so to the whole step, and a gradient step, the best is taken. The number
    of steps is fixed, so that nothing waits for a GPU.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    # The ridge keeps equal concepts solvable; a step with a larger curvature still descends.
    ridge = torch.finfo(u.dtype).eps * u.shape[1] * diagonal.amax(1, keepdim=True)
    largest = gram.abs().sum(2).amax(1, keepdim=True).clamp(min=torch.finfo(u.dtype).tiny)
    share = torch.linspace(0, 1, _LENGTHS, dtype=u.dtype, device=u.device)
    for damping in _DAMPING:
        sign = torch.where(u != 0, u.sign(), gradient.sign() * (gradient.abs() > lam))
        used = sign != 0
        hessian = gram * (used[:, :, None] & used[:, None])
        more = ridge + damping * diagonal.mean(1, keepdim=True)
        hessian.diagonal(dim1=1, dim2=2).add_(torch.where(used, more, 1))
        slope = torch.where(used, gradient - lam * sign, 0)
        # Cholesky: MKL's batched LU (torch.linalg.solve) hangs or gives NaN with two threads.
        factor, failed = torch.linalg.cholesky_ex(hessian)
        step = torch.cholesky_solve(slope[..., None], factor)[..., 0]
        step = torch.where(failed[:, None] == 0, step, 0)
        first = torch.where(u * (u + step) < 0, -u / step, 1).amin(1, keepdim=True)
        trial = u[:, None] + (first**share)[..., None] * step[:, None]
        trial = torch.where(trial * sign[:, None] > 0, trial, 0)
        plain = u + gradient / largest
        plain = plain - plain.clamp(-lam / largest, lam / largest)
        trial = torch.cat([trial, plain[:, None]], 1)
        change = trial - u[:, None]
        moved = change @ gram
        rise = (change * (0.5 * moved - gradient[:, None])).sum(2)
        rise = rise + lam * (trial.abs() - u[:, None].abs()).sum(2)
        best = rise.argmin(1)[:, None, None].expand(-1, 1, u.shape[1])
        u, gradient = trial.gather(1, best)[:, 0], gradient - moved.gather(1, best)[:, 0]
    return u


def _relative_gap(
    y: Tensor, residual: Tensor, correlation: Tensor, codes: Tensor, lam: float
) -> Tensor:
    """Duality gap over the objective (...,), from y, r = y − uV, max_j |⟨v_j, r⟩| and u."""
    residual_square, inner = residual.square().sum(-1), (y * residual).sum(-1)
    primal = 0.5 * residual_square + lam * codes.abs().sum(-1)
    tiny = torch.finfo(primal.dtype).tiny
    # The dual point s·r maximises the dual over the s that are feasible.
    bound = lam / correlation.clamp(min=tiny)
    scale = (inner / residual_square.clamp(min=tiny)).clamp(-bound, bound)
    dual = scale * inner - 0.5 * scale.square() * residual_square
    return ((primal - dual) / primal.clamp(min=tiny)).clamp(min=0)

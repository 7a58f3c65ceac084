"""The Lasso (eq. 2) for many PFVs at once, with a bound on how far each is from its optimum."""

import math
import warnings

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

_CHUNK = 2**24
"""Floats of concept vectors that one batch of small problems gathers: 64 MB."""
_NEW = 32
"""Concepts that a working set gains at a time, at most."""
_SWEEPS = 64
"""Coordinate descent sweeps over a working set before all concepts are looked at again."""


def lasso_codes(
    x: Tensor, vectors: Tensor, lam: float, *, beta: Tensor | None = None, tol: float = 1e-5,
    max_iter: int = 30,
) -> Tensor:  # fmt: skip
    """Signed codes u that minimise ½‖x − β − uV‖² + λ‖u‖₁ (eq. 2).

    Coordinate descent, all PFVs at once, each on a small working set of concepts that grows
    until the duality gap over all concepts is small enough (as in Massias et al., 2018).

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
        Times that a PFV's working set may change.

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
    codes = flat.new_zeros(len(flat), len(vectors))
    for rows in torch.arange(len(flat), device=y.device).split(max(1, _CHUNK // len(vectors))):
        codes[rows], stuck, gap = _solve(flat[rows], vectors, lam, tol, max_iter)
        if len(stuck) and y.dtype == torch.float32:
            # Rounding may keep the gap of a few PFVs above a small tolerance.
            solved, still, gap = _solve(
                flat[rows[stuck]].double(), vectors.double(), lam, tol, max_iter
            )
            codes[rows[stuck]] = solved.to(codes)
            stuck = stuck[still]
        if len(stuck):
            warnings.warn(
                f"{len(stuck)} of {len(rows)} PFVs stopped at a relative duality gap of up to "
                f"{float(gap.max()):.1e}, above tol={tol:.1e}: raise lam or max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
    return codes.reshape(*y.shape[:-1], len(vectors))


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
    return _relative_gap(
        y.square().sum(-1),
        residual.square().sum(-1),
        (y * residual).sum(-1),
        (residual @ vectors.T).abs().amax(-1),
        codes.abs().sum(-1),
        lam,
    )


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
        Wanted mean number, above 0; see :func:`gig_helpers.concepts.wanted_nonzeros`.
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
    largest = (y.reshape(-1, y.shape[-1]) @ vectors.T).abs().amax(-1)
    if not largest.any():
        raise ValueError("every PFV equals beta, so all codes are 0 at any lam")
    # Counts fall roughly as a power of λ, so a secant on logarithms, kept inside the bracket.
    low, high = (0.0, math.inf), (float(largest.max()), 0.0)
    lam = float(largest.median()) / 2 or high[0] / 2
    for _ in range(40):
        codes = lasso_codes(y, vectors, lam, tol=1e-4)
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
        else:
            lam = lam * 2 if count > nonzeros else lam / 2
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
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    return y


def _solve(
    y: Tensor, vectors: Tensor, lam: float, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lasso codes (n, k) of y (n, C); the rows that did not get to ``tol``, and their gaps."""
    n, k = len(y), len(vectors)
    codes = y.new_zeros(n, k)
    correlation = y @ vectors.T
    gap = _relative_gap(
        y.square().sum(1),
        y.square().sum(1),
        y.square().sum(1),
        correlation.abs().amax(1),
        y.new_zeros(n),
        lam,
    )
    todo = torch.nonzero(gap > tol)[:, 0]
    correlation, gap = correlation[todo], gap[todo]
    for _ in range(max_iter):
        if not len(todo):
            break
        # A working set holds the concepts in use and those that break the optimality condition
        # |⟨v_j, residual⟩| ≤ λ most. Its size is a power of two, so that PFVs share batches.
        used = codes[todo] != 0
        violating = ~used & (correlation.abs() > lam)
        wanted = used.sum(1) + violating.sum(1).clamp(max=_NEW)
        width = 2 ** wanted.clamp(min=8).double().log2().ceil().long()
        priority = correlation.abs().masked_fill(used, torch.inf)
        for size in width.unique().tolist():
            group = torch.nonzero(width == size)[:, 0]
            size = min(size, k)
            for part in group.split(max(1, _CHUNK // (size * y.shape[1]))):
                rows, index = todo[part], priority[part].topk(size, dim=1).indices
                atoms = vectors[index]
                start = codes[rows].gather(1, index)
                enough = (0.1 * gap[part]).clamp(min=0.3 * tol)
                solved = _descend(y[rows], atoms, start, lam, enough)
                codes[rows] = codes[rows].scatter(1, index, solved)
        residual = y[todo] - codes[todo] @ vectors
        correlation = residual @ vectors.T
        gap = _relative_gap(
            y[todo].square().sum(1),
            residual.square().sum(1),
            (y[todo] * residual).sum(1),
            correlation.abs().amax(1),
            codes[todo].abs().sum(1),
            lam,
        )
        open_ = ~(gap <= tol)  # NaN is no solution
        todo, correlation, gap = todo[open_], correlation[open_], gap[open_]
    return codes, todo, gap


def _descend(y: Tensor, atoms: Tensor, codes: Tensor, lam: float, tol: Tensor) -> Tensor:
    """Solve a batch of small problems: y (n, C), atoms (n, m, C), codes (n, m) to start from."""
    target = (atoms @ y[..., None])[..., 0]
    gradient = (atoms @ (y - (codes[:, None] @ atoms)[:, 0])[..., None])[..., 0]
    square = y.square().sum(1)
    # (m, n, m) and (m, n): what one step reads lies side by side.
    gram = (atoms @ atoms.mT).transpose(0, 1).contiguous()
    scale = gram.diagonal(dim1=0, dim2=2).T.clamp(min=torch.finfo(y.dtype).tiny)
    u = codes.T.contiguous()
    for sweep in range(1, _SWEEPS + 1):
        for j in range(len(u)):
            threshold = lam / scale[j]
            new = u[j] + gradient[:, j] / scale[j]
            new = new - new.clamp(-threshold, threshold)
            gradient.addcmul_(gram[j], (u[j] - new)[:, None])
            u[j] = new
        if sweep % 2 == 0:
            fitted = (u.T * target).sum(1)
            gap = _relative_gap(
                square,
                square - fitted - (u.T * gradient).sum(1),
                square - fitted,
                gradient.abs().amax(1),
                u.abs().sum(0),
                lam,
            )
            if (gap <= tol).all():
                break
            u, gradient = _newton(gram, u, gradient, lam)
    return u.T


def _newton(gram: Tensor, u: Tensor, gradient: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Step to the optimum for the present signs, or to the first code that would change its sign.

    Coordinate descent finds the signs fast, but is slow at the values where concepts are alike.
    Within an orthant eq. 2 is quadratic, so this step never raises it.
    """
    codes = u.T
    used = codes != 0
    pairs = (used[:, :, None] & used[:, None]).to(gram)
    diagonal = gram.diagonal(dim1=0, dim2=2)
    # The ridge keeps equal concepts solvable; a step with a larger curvature still descends.
    ridge = torch.finfo(u.dtype).eps * len(u) * diagonal.amax(1, keepdim=True)
    hessian = gram.transpose(0, 1) * pairs + torch.diag_embed(torch.where(used, ridge, 1))
    slope = torch.where(used, gradient - lam * codes.sign(), 0)
    # Cholesky: MKL's batched LU, behind torch.linalg.solve, hangs or gives NaN with two threads.
    factor, failed = torch.linalg.cholesky_ex(hessian)
    step = torch.cholesky_solve(slope[..., None], factor)[..., 0]
    step = torch.where(failed[:, None] == 0, step, 0)
    crossing = torch.where(codes * (codes + step) < 0, -codes / step, torch.inf)
    length = crossing.amin(1, keepdim=True).clamp(max=1)
    moved = torch.where(crossing <= length, 0, codes + length * step)
    change = moved - codes
    gradient = gradient - (change[:, None] @ gram.transpose(0, 1))[:, 0]
    return moved.T.contiguous(), gradient


def _relative_gap(
    target_square: Tensor, residual_square: Tensor, inner: Tensor, correlation: Tensor, l1: Tensor,
    lam: float,
) -> Tensor:  # fmt: skip
    """Duality gap over the objective, from ‖y‖², ‖r‖², ⟨y, r⟩, max_j |⟨v_j, r⟩| and ‖u‖₁."""
    primal = 0.5 * residual_square + lam * l1
    tiny = torch.finfo(primal.dtype).tiny
    # The dual point s·r maximises the dual over the s that are feasible.
    bound = lam / correlation.clamp(min=tiny)
    scale = (inner / residual_square.clamp(min=tiny)).clamp(-bound, bound)
    dual = scale * inner - 0.5 * scale.square() * residual_square
    return ((primal - dual) / primal.clamp(min=tiny)).clamp(min=0)

"""PFVs and concepts to codes: x ≈ β + Σ_j u_j v_j with few u_j (eqs. 1, 2 and 9)."""

import math
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from . import artifacts
from . import network as network_module
from .clustering import Concepts
from .network import Network
from .pfv import PFVDataset
from .profiles import Profile

TABLE_1_NONZEROS = {
    "layer1.1": 11,
    "layer2.0": 15,
    "layer2.2": 16,
    "layer3.0": 24,
    "layer3.2": 27,
    "layer3.4": 31,
    "layer4.0": 52,
    "layer4.2": 105,
}
"""Non-zero codes a PFV that Table 1 ("Ours") implies: (1 − l0 ratio) · 8C."""

_CHUNK = 2**24
"""Floats of concept vectors that one batch of small problems gathers: 64 MB."""
_NEW = 32
"""Concepts that a working set gains at a time, at most."""
_SWEEPS = 64
"""Coordinate descent sweeps over a working set before all concepts are looked at again."""


def paper_nonzeros(block: str) -> int:
    """Non-zero codes a PFV in the paper's Table 1.

    A block that the table leaves out gets the count of the block before it in the same stage,
    or, for a stage's first block, of the one after it.

    Raises
    ------
    KeyError
        If the block is of no stage that the table lists.
    """
    stage = [listed for listed in sorted(TABLE_1_NONZEROS) if listed[:6] == block[:6]]
    if not stage:
        raise KeyError(f"Table 1 lists no block of the stage of {block!r}")
    return TABLE_1_NONZEROS[max((b for b in stage if b <= block), default=stage[0])]


def lasso_codes(
    x: Tensor,
    concepts: Tensor,
    lam: float,
    *,
    beta: Tensor | None = None,
    tol: float = 1e-5,
    max_iter: int = 30,
) -> Tensor:
    """Signed codes u that minimise ½‖x − β − uV‖² + λ‖u‖₁ (eq. 2).

    Coordinate descent, all PFVs at once, each on a small working set of concepts that grows
    until the duality gap over all concepts is small enough (as in Massias et al., 2018).

    Parameters
    ----------
    x
        PFVs (..., C).
    concepts
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
    """
    y = _centred(x, concepts, beta)
    if not (math.isfinite(lam) and lam > 0):
        raise ValueError(f"lam must be a positive number, got {lam}")
    flat = y.reshape(-1, y.shape[-1])
    codes = flat.new_zeros(len(flat), len(concepts))
    for rows in torch.arange(len(flat), device=y.device).split(max(1, _CHUNK // len(concepts))):
        codes[rows], stuck, gap = _solve(flat[rows], concepts, lam, tol, max_iter)
        if len(stuck) and y.dtype == torch.float32:
            # Rounding may keep the gap of a few PFVs above a small tolerance.
            solved, still, gap = _solve(
                flat[rows[stuck]].double(), concepts.double(), lam, tol, max_iter
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
    return codes.reshape(*y.shape[:-1], len(concepts))


def duality_gap(
    x: Tensor, concepts: Tensor, codes: Tensor, lam: float, *, beta: Tensor | None = None
) -> Tensor:
    """How far codes can be above eq. 2's optimum, relative to their objective; shape (...,).

    The dual point is the residual, scaled into the feasible set ``max_j |⟨v_j, θ⟩| ≤ λ``.

    Raises
    ------
    ValueError
        As :func:`lasso_codes`.
    """
    y = _centred(x, concepts, beta)
    residual = y - codes @ concepts
    return _relative_gap(
        y.square().sum(-1),
        residual.square().sum(-1),
        (y * residual).sum(-1),
        (residual @ concepts.T).abs().amax(-1),
        codes.abs().sum(-1),
        lam,
    )


def objective(
    x: Tensor, concepts: Tensor, codes: Tensor, lam: float, *, beta: Tensor | None = None
) -> Tensor:
    """Value of eq. 2 for each PFV, shape (...,)."""
    residual = _centred(x, concepts, beta) - codes @ concepts
    return 0.5 * residual.square().sum(-1) + lam * codes.abs().sum(-1)


def lambda_for(
    x: Tensor,
    concepts: Tensor,
    nonzeros: float,
    *,
    beta: Tensor | None = None,
    rtol: float = 0.02,
) -> float:
    """The λ of eq. 2 at which a PFV has so many non-zero codes on average.

    A few hundred PFVs are enough to choose it.

    Parameters
    ----------
    x, concepts, beta
        As :func:`lasso_codes`.
    nonzeros
        Wanted mean number, above 0; see :func:`paper_nonzeros`.
    rtol
        Relative deviation of the mean number that is good enough.

    Raises
    ------
    ValueError
        If no λ gives that many: a PFV needs at most min(k, C).
    """
    y = _centred(x, concepts, beta)
    most = min(concepts.shape)
    if not 0 < nonzeros <= most:
        raise ValueError(f"nonzeros must lie above 0 and at most min(k, C) = {most}: {nonzeros}")
    largest = (y.reshape(-1, y.shape[-1]) @ concepts.T).abs().amax(-1)
    if not largest.any():
        raise ValueError("every PFV equals beta, so all codes are 0 at any lam")
    # Counts fall roughly as a power of λ, so a secant on logarithms, kept inside the bracket.
    low, high = (0.0, math.inf), (float(largest.max()), 0.0)
    lam = float(largest.median()) / 2 or high[0] / 2
    for _ in range(40):
        codes = lasso_codes(y, concepts, lam, tol=1e-4)
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


def load_penalty(dataset: PFVDataset, profile: Profile, concepts: Concepts) -> float:
    """λ for a block: the count of Table 1 (:func:`paper_nonzeros`), or what an equal run found.

    Chosen on 200 PFVs of the dataset. Where there are few concepts, a quarter of them is the most.
    """
    wanted = min(paper_nonzeros(concepts.block), len(concepts) / 4)
    depends = {
        "pfv": dataset.key,
        "concepts": concepts.fingerprint,
        "nonzeros": wanted,
        "seed": profile.seed,
    }

    def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
        x = dataset.vectors(concepts.block).to(concepts.vectors)
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(profile.seed))[:200]
        lam = lambda_for(x[chosen], concepts.vectors, wanted, beta=concepts.beta)
        return {"penalty": torch.tensor(lam, dtype=torch.float64)}, {}

    tensors, _ = artifacts.cached("penalty", depends, compute, code=(sys.modules[__name__],))
    return float(tensors["penalty"])


@torch.no_grad()
def picture_codes(
    network: Network,
    images: Tensor,
    concepts: Mapping[str, Concepts],
    penalties: Mapping[str, float],
) -> dict[str, Tensor]:
    """Codes of every position of some pictures, at several blocks (eqs. 1 and 2).

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    concepts, penalties
        Concepts and λ of each block.

    Returns
    -------
    dict
        ``{block: (N, H·W, k)}``, positions row-major.
    """
    found = {}
    for block, x in network.preactivations(images, concepts).items():
        here = concepts[block]
        flat = x.flatten(2).transpose(1, 2)
        found[block] = lasso_codes(flat, here.vectors, penalties[block], beta=here.beta)
    return found


def load_codes(network: Network, images: Tensor, concepts: Concepts, penalty: float) -> Tensor:
    """Codes of some pictures at one block, each from disk where an equal run has left them.

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    penalty
        λ of eq. 2.

    Returns
    -------
    Tensor
        (N, H·W, k), as :func:`picture_codes`.
    """
    block, found = concepts.block, []
    shared = {
        "network": network.fingerprint,
        "block": block,
        "concepts": concepts.fingerprint,
        "penalty": penalty,
    }
    for image in images:

        def compute(image: Tensor = image) -> tuple[dict[str, Tensor], dict[str, Any]]:
            one = picture_codes(network, image[None], {block: concepts}, {block: penalty})[block][0]
            place = one.nonzero()
            values = one[place[:, 0], place[:, 1]]
            return {"place": place.int(), "values": values, "shape": torch.tensor(one.shape)}, {}

        depends = {**shared, "picture": artifacts.digest(image)}
        code = (network_module, sys.modules[__name__])
        tensors, _ = artifacts.cached("codes", depends, compute, code)
        codes = tensors["values"].new_zeros(tensors["shape"].tolist())
        row, column = tensors["place"].long().unbind(dim=1)
        codes[row, column] = tensors["values"]
        found.append(codes.to(concepts.vectors))
    return torch.stack(found)


def lasso_lars_codes(
    x: Tensor, concepts: Tensor, lam: float, *, beta: Tensor | None = None
) -> Tensor:
    """Codes of eq. 2 by scikit-learn's LARS: the paper's solver, and slow.

    LARS follows the path down to λ and needs no tolerance. In double precision, on the CPU.
    x (..., C) and concepts (k, C) give codes (..., k); parameters and errors are the same.
    """
    y = _centred(x, concepts, beta)
    codes = sparse_encode(
        y.reshape(-1, y.shape[-1]).double().cpu().numpy(),
        concepts.double().cpu().numpy(),
        algorithm="lasso_lars",
        alpha=lam,
        max_iter=4 * min(concepts.shape),
    )
    return torch.from_numpy(codes).to(y).reshape(*y.shape[:-1], len(concepts))


def reconstruct(codes: Tensor, concepts: Tensor, beta: Tensor) -> Tensor:
    """X̃ = UV + β (eq. 9): codes (..., k), concepts (k, C), beta (C,) → (..., C)."""
    return codes @ concepts + beta


def relative_l2(x: Tensor, x_hat: Tensor) -> Tensor:
    """‖x − x̂‖ / ‖x‖ of each PFV (section 4.2.2); (..., C) → (...,).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(x_hat.shape)}")
    return (x - x_hat).norm(dim=-1) / x.norm(dim=-1)


def l0_ratio(codes: Tensor) -> Tensor:
    """Share of zero codes of each PFV (section 4.2.2); (..., k) → (...,)."""
    return (codes == 0).float().mean(-1)


def _centred(x: Tensor, concepts: Tensor, beta: Tensor | None) -> Tensor:
    if concepts.ndim != 2 or not concepts.numel():
        raise ValueError(f"concepts must be (k, C) and not empty, got {tuple(concepts.shape)}")
    if x.ndim < 1 or x.shape[-1] != concepts.shape[1] or not x.numel():
        raise ValueError(
            f"x must be (..., {concepts.shape[1]}), as the concepts, and not empty, "
            f"got {tuple(x.shape)}"
        )
    if beta is not None and beta.shape != concepts.shape[1:]:
        raise ValueError(f"beta must be ({concepts.shape[1]},), got {tuple(beta.shape)}")
    y = x if beta is None else x - beta
    for name, tensor in (("x − beta", y), ("concepts", concepts)):
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinite values")
    return y


def _solve(
    y: Tensor, concepts: Tensor, lam: float, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Lasso codes (n, k) of y (n, C); the rows that did not get to ``tol``, and their gaps."""
    n, k = len(y), len(concepts)
    codes = y.new_zeros(n, k)
    correlation = y @ concepts.T
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
                atoms = concepts[index]
                start = codes[rows].gather(1, index)
                enough = (0.1 * gap[part]).clamp(min=0.3 * tol)
                solved = _descend(y[rows], atoms, start, lam, enough)
                codes[rows] = codes[rows].scatter(1, index, solved)
        residual = y[todo] - codes[todo] @ concepts
        correlation = residual @ concepts.T
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
    target_square: Tensor,
    residual_square: Tensor,
    inner: Tensor,
    correlation: Tensor,
    l1: Tensor,
    lam: float,
) -> Tensor:
    """Duality gap over the objective, from ‖y‖², ‖r‖², ⟨y, r⟩, max_j |⟨v_j, r⟩| and ‖u‖₁."""
    primal = 0.5 * residual_square + lam * l1
    tiny = torch.finfo(primal.dtype).tiny
    # The dual point s·r maximises the dual over the s that are feasible.
    bound = lam / correlation.clamp(min=tiny)
    scale = (inner / residual_square.clamp(min=tiny)).clamp(-bound, bound)
    dual = scale * inner - 0.5 * scale.square() * residual_square
    return ((primal - dual) / primal.clamp(min=tiny)).clamp(min=0)

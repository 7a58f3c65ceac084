"""Codes of 200 PFVs (eq. 2) against scikit-learn's lasso_lars and lasso_cd: time and optimality.

    python tests/benchmarks/bench_lasso.py

Then all codes of one picture, with a forward pass of one picture as the unit of time.

Concepts: k = 8C clusters of other pictures' PFVs. λ gives the paper's number of non-zeros.
"""

import os
import time
import warnings
from collections.abc import Callable

import torch
from bench_clustering import real_pfvs
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from gig_helpers import load_network, load_pictures
from gig_helpers.concepts import extract
from gig_helpers.lasso import duality_gap, lambda_for, lasso_codes, objective, wanted_nonzeros

PFVS = 200


def timed(solve: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    return solve(), time.perf_counter() - start


def peer(y: Tensor, vectors: Tensor, lam: float, algorithm: str) -> Tensor:
    """scikit-learn's codes; LARS may add a concept in each of its steps, and take it out again."""
    steps = 4 * min(vectors.shape) if algorithm == "lasso_lars" else 1000
    codes = sparse_encode(
        y.numpy(), vectors.numpy(), algorithm=algorithm, alpha=lam, max_iter=steps
    )
    return torch.from_numpy(codes)


def compare(block: str) -> None:
    everything, beta = real_pfvs(block, 10_000)
    # Whole pictures apart: the last ones' PFVs are the ones to be taken apart.
    x, rest = everything[-PFVS:], everything[:-PFVS]
    vectors = extract(rest, beta, 8 * x.shape[1]).vectors
    lam = lambda_for(x, vectors, wanted_nonzeros(block, len(vectors)), beta=beta)
    y = x - beta
    lasso_codes(x[:8], vectors, lam, beta=beta)  # the first call starts torch's threads
    solvers: dict[str, Callable[[], Tensor]] = {
        "lasso_codes": lambda: lasso_codes(x, vectors, lam, beta=beta),
        "lasso_lars": lambda: peer(y.double(), vectors.double(), lam, "lasso_lars"),
        "lasso_cd": lambda: peer(y, vectors, lam, "lasso_cd"),
    }
    solved = {name: timed(solve) for name, solve in solvers.items()}
    best = objective(y.double(), vectors.double(), solved["lasso_lars"][0], lam)
    for name, (codes, seconds) in solved.items():
        exact = (y.double(), vectors.double(), codes.double(), lam)
        above = ((objective(*exact) - best) / best).max()
        print(
            f"{block} k={len(vectors)} λ={lam:.3g} {name}: {seconds:.2f} s, "
            f"{(codes != 0).sum(1).double().mean():.1f} non-zeros, "
            f"at most {above:.1e} above lasso_lars, gap ≤ {duality_gap(*exact).max():.1e}"
        )


def picture(block: str) -> None:
    """Concepts are other pictures' PFVs, as few of them as there are of k = 8C at layer 4."""
    network = load_network()
    pictures = load_pictures(os.environ.get("GIG_IMAGES", "sample"), network)
    images = pictures[[*range(8)]]
    everything, beta = real_pfvs(block, 10_000)
    x = network.positions(network.preactivations(images[:1], [block])[block], block)[0]
    chosen = everything[min(100, len(x)) :][: 8 * x.shape[1]]  # without the first picture
    vectors = F.normalize(chosen - beta, dim=1)
    some = x[:: max(1, len(x) // 200)]
    lam = lambda_for(some, vectors, wanted_nonzeros(block, len(vectors)), beta=beta)
    network.logits(images)
    # Side by side, the least of three: the machine may be busy.
    passes = min(timed(lambda: network.logits(images))[1] for _ in range(3)) / len(images)
    seconds = min(timed(lambda: lasso_codes(x, vectors, lam, beta=beta))[1] for _ in range(3))
    print(
        f"{block} one picture, {len(x)} PFVs, k={len(vectors)}: {seconds:.2f} s, "
        f"{seconds / passes:.1f} forward passes"
    )


def main() -> None:
    warnings.simplefilter("ignore", ConvergenceWarning)  # lasso_cd; its gap is printed
    for block in ("layer1.2", "layer3.5"):
        compare(block)
    with torch.inference_mode():
        for block in ("layer1.2", "layer4.2"):
            picture(block)


if __name__ == "__main__":
    main()

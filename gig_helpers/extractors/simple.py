"""Rivals of the bisecting clustering, by scikit-learn or by chance (section 4, appendix F)."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor
from torch.nn import functional as F

from ..clustering import nearest_centre
from ..concepts import Average, Concepts, concept_vectors


def random_pfvs(x: Tensor, beta: Tensor, k: int, seed: int = 0, *, block: str = "") -> Concepts:
    """Some of the PFVs, drawn without repetition: what every method must beat; not in the paper.

    Parameters
    ----------
    x
        PFVs (N, C), not centred.
    beta
        μ_BN (C,).
    k
        k, at most N.

    Raises
    ------
    ValueError
        If shapes do not fit, x is not finite, or there are more concepts than PFVs.
    """
    check(x, beta, k)
    chosen = np.random.default_rng(seed).choice(len(x), k, replace=False)
    vectors = (x - beta)[torch.from_numpy(chosen).to(x.device)]
    return Concepts(vectors, beta, nearest_centre(x - beta, vectors), block)


def kmeans(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, average: Average = "unit", block: str = ""
) -> Concepts:
    """Averages of the clusters of k-means, without bisecting, among unit vectors (section 1).

    The parameters and errors are those of :func:`random_pfvs`: x (N, C), beta (C,); ``average`` as
    in :func:`gig_helpers.concepts.concept_vectors`.
    """
    check(x, beta, k)
    unit = F.normalize(x - beta, dim=1).cpu().numpy()
    found = KMeans(k, n_init=1, random_state=seed).fit(unit).labels_
    # Where vectors repeat, KMeans returns fewer clusters than asked for.
    labels = torch.from_numpy(np.unique(found, return_inverse=True)[1]).to(x.device)
    return Concepts(concept_vectors(x, labels, beta, average), beta, labels, block)


def dictionary_learning(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, alpha: float | None = None,
    max_iter: int = 20, block: str = "",
) -> Concepts:  # fmt: skip
    """Dictionary learning with LARS (Mairal et al., 2009), by scikit-learn, in small batches.

    Parameters
    ----------
    x, beta, k
        (N, C), (C,) and k, as in :func:`random_pfvs`, with its errors.
    alpha
        λ of eq. 2 in training, where atoms have unit length. ``None``: a tenth of the mean
        ‖x − β‖.
    max_iter
        Passes over the data, at most. The time grows with k² and more.
    """
    check(x, beta, k)
    centred = x - beta
    model = MiniBatchDictionaryLearning(
        k,
        alpha=float(centred.norm(dim=1).mean()) / 10 if alpha is None else alpha,
        max_iter=max_iter,
        fit_algorithm="lars",
        batch_size=256,
        random_state=seed,
    ).fit(centred.cpu().numpy())
    vectors = torch.from_numpy(model.components_).to(x)
    return Concepts(vectors, beta, nearest_centre(centred, vectors), block)


def check(x: Tensor, beta: Tensor, k: int) -> None:
    """Refuse PFVs (N, C) that no extractor can work on; not in the paper.

    Raises
    ------
    ValueError
        If shapes do not fit, x is not finite, or there are more concepts than PFVs.
    """
    if x.ndim != 2 or beta.shape != x.shape[1:]:
        raise ValueError(
            f"expected x (N, C) and beta (C,), got {tuple(x.shape)} and {tuple(beta.shape)}"
        )
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinite values")
    if not 1 <= k <= len(x):
        raise ValueError(f"k must lie between 1 and the {len(x)} PFVs, got {k}")

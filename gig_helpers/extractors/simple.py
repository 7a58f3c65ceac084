"""Rivals of the bisecting clustering, by scikit-learn or by chance (section 4, appendix F)."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from ..clustering import nearest_centre
from ..concepts import Average, Concepts, concept_vectors, extractor


@extractor("random_pfvs", "random PFVs")
def random_pfvs(x: Tensor, beta: Tensor, k: int, seed: int = 0, *, block: str = "") -> Concepts:
    """Some of the PFVs, drawn without repetition: what every method must beat; not in the paper.

    Parameters
    ----------
    x
        PFVs (N, C), not centred.
    beta
        β (C,).
    k
        k, at most N.

    Raises
    ------
    ValueError
        If shapes do not fit, x is not finite, or there are more concepts than PFVs.

    Examples
    --------
    >>> x = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    >>> concepts = random_pfvs(x, torch.tensor([1.0, 1.0]), 2)
    >>> sorted(concepts.vectors.tolist())  # both, centred
    [[0.0, 3.0], [1.0, 0.0]]
    """
    centred = centre(x, beta, k)
    chosen = np.random.default_rng(seed).choice(len(x), k, replace=False)
    vectors = centred[torch.from_numpy(chosen)]
    return Concepts(vectors, beta, nearest_centre(centred, vectors), block)


@extractor("kmeans", "k-means")
def kmeans(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, average: Average = "unit", block: str = ""
) -> Concepts:
    """Averages of the clusters of k-means, without bisecting, among unit vectors (section 1).

    The parameters and errors are those of :func:`random_pfvs`: x (N, C), beta (C,); ``average`` as
    in :func:`gig_helpers.concepts.concept_vectors`.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 5.0]])
    >>> sorted(kmeans(x, torch.zeros(2), 2, average="raw").vectors.tolist())
    [[0.0, 3.5], [2.0, 0.0]]
    """
    unit = F.normalize(centre(x, beta, k), dim=1).cpu().numpy()
    clusters = KMeans(k, n_init=1, random_state=seed).fit(unit).labels_
    # Where vectors repeat, KMeans returns fewer clusters than asked for.
    labels = torch.from_numpy(np.unique(clusters, return_inverse=True)[1]).to(x.device)
    return Concepts(concept_vectors(x, labels, beta, average), beta, labels, block)


def centre(x: Tensor, beta: Tensor, k: int) -> Tensor:
    """x − β (N, C), or an error where no extractor could find k concepts; not in the paper.

    Raises
    ------
    ValueError
        If shapes do not fit, x is not finite, or there are more concepts than PFVs.

    Examples
    --------
    >>> centre(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([1.0, 2.0]), k=2).tolist()
    [[2.0, -1.0], [-1.0, 0.0]]
    """
    if x.ndim != 2 or beta.shape != x.shape[1:]:
        raise ValueError(
            f"expected x (N, C) and beta (C,), got {tuple(x.shape)} and {tuple(beta.shape)}"
        )
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinite values")
    if not 1 <= k <= len(x):
        raise ValueError(f"k must lie between 1 and the {len(x)} PFVs, got {k}")
    return x - beta

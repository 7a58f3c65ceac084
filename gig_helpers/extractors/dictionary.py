"""Dictionary learning, the paper's first rival (section 4), by the Lasso that codes are made by."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..clustering import nearest_centre
from ..concepts import Concepts, extract, extractor, tune
from .simple import centre


@extractor("dictionary_learning", "dictionary learning")
def dictionary_learning(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, passes: int = 5, block: str = ""
) -> Concepts:
    """Dictionary learning (Mairal et al., 2009): codes by eq. 2, then atoms that fit them better.

    Atoms start at the clusters' directions and have unit length at most. λ is that of
    :func:`gig_helpers.concepts.tune`, and chosen anew in each pass. Atoms no PFV uses stay as they
    are. scikit-learn's ``MiniBatchDictionaryLearning`` keeps a k × k matrix and one Lasso problem
    at a time, which does not go as far as 8 concepts a channel.

    Parameters
    ----------
    x, beta, k
        (N, C), (C,) and k, as in :func:`random_pfvs`, with its errors.
    passes
        Over the data. Few PFVs an atom are soon learnt by heart: at five, one pass was the best for
        others at layer3.5, and none at layer1.2.

    Examples
    --------
    >>> x = torch.randn(60, 4)
    >>> atoms = dictionary_learning(x, torch.zeros(4), 6, passes=2).vectors
    >>> atoms.shape, bool((atoms.norm(dim=1) < 1.001).all())
    (torch.Size([6, 4]), True)
    """
    centred = centre(x, beta, k)
    vectors = F.normalize(extract(x, beta, k, seed).vectors, dim=1)
    for _ in range(passes):
        concepts = tune(Concepts(vectors, beta, torch.zeros(0), block), x, seed=seed)
        sparse = [concepts.encode(part).to_sparse() for part in x.split(1024)]
        _update(vectors, torch.cat(sparse), centred)
    return Concepts(vectors, beta, nearest_centre(centred, vectors), block)


def _update(vectors: Tensor, codes: Tensor, x: Tensor) -> None:
    """Atoms (k, C), one after the other, of least squared error for sparse codes (N, k), in place.

    As algorithm 2 of Mairal et al. (2009): what the others leave, projected on the unit ball.
    """
    residual = x - torch.sparse.mm(codes, vectors)
    by_atom = codes.T.coalesce()
    atoms, counts = by_atom.indices()[0].unique_consecutive(return_counts=True)
    parts = (part.split(counts.tolist()) for part in (by_atom.indices()[1], by_atom.values()))
    for atom, rows, u in zip(atoms.tolist(), *parts, strict=True):
        before = vectors[atom].clone()
        moved = before + u @ residual[rows] / u.square().sum()
        vectors[atom] = moved / moved.norm().clamp(min=1)
        residual[rows] += torch.outer(u, before - vectors[atom])

"""C-μFidelity: do the relevances of a set of concepts add up to what its loss costs? (4.2.1)"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ..codes import Decomposition


@torch.no_grad()
def class_fidelity(
    d: Decomposition, block: str, classes: Tensor | Sequence[int], importance: Tensor, *,
    subsets: int = 200, fraction: float = 0.2, seed: int = 0, batch_size: int = 16,
) -> Tensor:  # fmt: skip
    """C-μFidelity (Fel et al., 2024; section 4.2.1), of several methods by the same sets.

    Spearman's correlation, over random sets S of concepts, of Σ_{q∈S} Γ_q with what the class's
    logit loses when the coefficients of S are set to 0.

    Parameters
    ----------
    block
        The block whose concepts are taken out.
    classes
        (N,) the network's own predictions.
    importance
        (N, M, k), of M methods.
    subsets, fraction
        How many sets, and their share of all k concepts.

    Returns
    -------
    Tensor
        (N, M), NaN where nothing varies.

    Raises
    ------
    ValueError
        If shapes do not fit, or the sets are too few, too small or too large.

    Examples
    --------
    Where all is positive, a ReLU network is linear after its last block, and relevances add up.

    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Concepts, Network, attribute
    >>> network, block = Network(resnet18(num_classes=5), device="cpu"), "layer4.1"
    >>> concepts = Concepts(torch.rand(10, 512), torch.zeros(512), torch.arange(10), block)
    >>> codes = torch.rand(1, 4, 10)
    >>> d = Decomposition(network, torch.zeros(1, 3, 64, 64), {block: concepts}, {block: codes})
    >>> class_fidelity(d, block, [3], attribute(d, block, 3), subsets=50).round(decimals=3)
    tensor([[1.]], dtype=torch.float64)
    """
    u, here, segment = d.codes[block], d.concepts[block], d.network.segment(block)
    k = len(here)
    if importance.ndim != 3 or (len(importance), importance.shape[2]) != (len(u), k):
        raise ValueError(f"importance {tuple(importance.shape)}: expected ({len(u)}, M, {k})")
    size = round(fraction * k)
    if subsets < 2 or not 0 < size < k:
        raise ValueError(f"cannot compare {subsets} sets of {size} of {k} concepts")
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(k, generator=generator)[:size] for _ in range(subsets)]
    out = torch.zeros(subsets, k).scatter_(1, torch.stack(draws), 1.0).to(u)
    result = []
    for picture, rows, label in zip(u, importance.to(u), classes, strict=True):
        active = picture.any(dim=0)
        left = []
        for part in out[:, here.family[active]].split(batch_size):
            kept = picture[:, active] * (1 - part)[:, None]
            left.append(segment(here.beta + kept @ here.vectors[active])[:, int(label)])
        lost = -torch.cat(left).cpu().numpy()
        with np.errstate(invalid="ignore"):
            ranks = [stats.spearmanr((out @ g).cpu().numpy(), lost) for g in rows]
        result.append([float(each.statistic) for each in ranks])
    return torch.tensor(result, dtype=torch.float64)

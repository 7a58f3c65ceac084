"""Concepts of a block: vectors V, shift β, and the λ that codes are found with (section 3.2)."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from . import clustering, lasso
from .clustering import BisectingSphericalKMeans, rows_of
from .data import artifacts, paper
from .data.profiles import Profile
from .network import Network
from .pfv import PFVDataset

Average = Literal["unit", "raw"]


@dataclass(frozen=True)
class Concepts:
    """Concepts of a block: all that is needed to write a PFV as x ≈ β + Σ_j u_j v_j (eqs. 1, 9).

    Attributes
    ----------
    vectors
        V (k, C).
    beta
        β (C,), the shift that PFVs are centred by: μ_BN (eq. 8), or an extractor's own.
    labels
        (N,), the concept of each PFV that they come from.
    block
        Name of the block.
    lam
        λ of eq. 2; ``None`` until :func:`tune` has chosen it.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a vector is NaN or infinite.

    Examples
    --------
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.tensor([0, 0, 1]), "layer4.2")
    >>> len(concepts), concepts.members(0).tolist()
    (2, [0, 1])
    >>> concepts.nearest(torch.tensor([[3.0, 1.0], [9.0, 1.0], [1.0, 5.0]]), 1).tolist()
    [[1], [2]]
    >>> concepts.class_entropy(torch.tensor([7, 8, 7])).tolist()  # two classes: one bit
    [1.0, 0.0]
    """

    vectors: Tensor
    beta: Tensor
    labels: Tensor
    block: str = ""
    lam: float | None = None

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.beta.shape != self.vectors.shape[1:]:
            raise ValueError(
                f"expected concepts (k, C) and beta (C,), got {tuple(self.vectors.shape)} and "
                f"{tuple(self.beta.shape)}"
            )
        if not (torch.isfinite(self.vectors).all() and torch.isfinite(self.beta).all()):
            raise ValueError("concepts hold NaN or infinite values")

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of block, vectors, β and λ."""
        lam = torch.tensor(float("nan") if self.lam is None else self.lam, dtype=torch.float64)
        return f"{self.block}-{artifacts.digest(self.vectors, self.beta, lam)}"

    def codes(self, x: Tensor) -> Tensor:
        """Codes (..., k) of PFVs x (..., C) that no λ is needed for: a sparse autoencoder's own.

        Raises
        ------
        ValueError
            If these concepts need one.

        Examples
        --------
        >>> Concepts(torch.eye(2), torch.zeros(2), torch.arange(2), "layer4.2").codes(torch.ones(2))
        Traceback (most recent call last):
        ValueError: the concepts of 'layer4.2' have no λ yet: see concepts.tune
        """
        raise ValueError(f"the concepts of {self.block!r} have no λ yet: see concepts.tune")

    def members(self, concept: int) -> Tensor:
        """Indices (m,) of the PFVs that belong to a concept.

        Raises
        ------
        IndexError
            If there is no such concept.
        """
        if not 0 <= concept < len(self):
            raise IndexError(f"no concept {concept}: there are {len(self)}, counted from 0")
        return torch.nonzero(self.labels == concept)[:, 0]

    def nearest(self, x: Tensor, n: int) -> Tensor:
        """Indices (k, n), on the CPU, of the PFVs nearest to each concept by cosine, best first.

        Parameters
        ----------
        x
            PFVs (N, C), not centred.

        Raises
        ------
        ValueError
            If x holds fewer than n PFVs.
        """
        if not 1 <= n <= len(x):
            raise ValueError(f"n must lie between 1 and the {len(x)} PFVs given, got {n}")
        unit = F.normalize(x.to(self.beta) - self.beta, dim=1)
        parts = F.normalize(self.vectors, dim=1).split(rows_of(len(x)))
        return torch.cat([(part @ unit.T).topk(n).indices for part in parts]).cpu()

    def class_entropy(self, classes: Tensor) -> Tensor:
        """Entropy (k,), in bits, over the classes of each concept's PFVs.

        0 is class-specific. A concept of m PFVs has at most log2(m), so compare concepts of
        similar size. NaN for a concept without PFVs.

        Parameters
        ----------
        classes
            (N,), the class of the picture each PFV comes from, counted from 0.

        Raises
        ------
        ValueError
            If there is not one class per PFV.
        """
        if classes.shape != self.labels.shape:
            raise ValueError(
                f"expected one class for each of {len(self.labels)} PFVs, "
                f"got shape {tuple(classes.shape)}"
            )
        table = pd.crosstab(self.labels.cpu().numpy(), classes.cpu().numpy())
        counts = table.reindex(range(len(self)))  # a row of NaN for a concept without PFVs
        return torch.from_numpy(stats.entropy(counts, axis=1, base=2)).float()


def extract(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, block: str = "", average: Average = "unit"
) -> Concepts:  # fmt: skip
    """Concepts of a block from its PFVs, as appendix B does it: bisecting clustering, averages.

    Parameters
    ----------
    x
        PFVs (N, C), pre-activation, not centred.
    beta
        β (C,), ``Network.bn_shift(block)``.
    k
        Number of concepts; the paper takes 8 C.
    average
        See :func:`concept_vectors`.

    Raises
    ------
    ValueError
        As :meth:`gig_helpers.clustering.BisectingSphericalKMeans.fit`; a PFV equal to beta has no
        direction.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.1], [5.0, -0.5], [0.1, 2.0], [-0.1, 1.0]])
    >>> extract(x, torch.zeros(2), 2).vectors.shape
    torch.Size([2, 2])
    """
    model = BisectingSphericalKMeans(k, random_state=seed, copy_x=False)
    labels = torch.from_numpy(model.fit(x - beta).labels_).to(x.device)
    return Concepts(concept_vectors(x, labels, beta, average), beta, labels, block)


def concept_vectors(x: Tensor, labels: Tensor, beta: Tensor, average: Average = "unit") -> Tensor:
    """Average (k, C) of the vectors within each cluster, "the concept vector" of appendix B.

    The paper does not say of which vectors. ``"unit"`` averages (v − β)/‖v − β‖, whose length
    is how tight the cluster is; ``"raw"`` averages v − β, so that a concept keeps the length
    its PFVs have. Lasso (eq. 2) taxes coefficients, so the longer an atom, the cheaper its use:
    among raw averages, clusters of long PFVs are used for their length. Unit averages left a
    smaller Rel-ℓ2 at equal non-zeros where it was tried (layer1.2, layer3.5).

    Parameters
    ----------
    x
        PFVs (N, C), not centred.
    labels
        (N,), cluster of each PFV; every label from 0 to the largest must occur.
    beta
        (C,)

    Raises
    ------
    ValueError
        If ``average`` is neither, or a cluster is empty.

    Examples
    --------
    >>> x = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    >>> concept_vectors(x, torch.tensor([0, 0, 1]), torch.zeros(2), "raw").tolist()
    [[3.0, 0.0], [0.0, 3.0]]
    """
    if average not in ("unit", "raw"):
        raise ValueError(f'average must be "unit" or "raw", got {average!r}')
    counts = torch.bincount(labels)
    if not counts.all():
        raise ValueError(f"no PFV has the label {int(counts.argmin())}: label clusters from 0 on")
    centred = x - beta
    if average == "unit":
        F.normalize(centred, dim=1, out=centred)
    sums = torch.zeros(len(counts), x.shape[1], dtype=x.dtype, device=x.device)
    return sums.index_add_(0, labels, centred) / counts[:, None]


def wanted_nonzeros(block: str, k: int, channels: int = 0) -> float:
    """Non-zero codes per PFV that λ is chosen for, where nothing else is asked: Table 1's count.

    For a block that is none of the table's stages C/32, and 2 at least: the table's counts lie
    between C/43 and C/20. Where there are few concepts, a quarter of them is the most.

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
    (105, 25.0)
    >>> wanted_nonzeros("blocks.3", 16384, channels=320)
    10.0
    """
    try:
        return min(paper.nonzeros(block), k / 4)
    except KeyError:
        if not channels:
            raise
    return min(max(channels / 32, 2), k / 4)


def tune(concepts: Concepts, x: Tensor, nonzeros: float | None = None, seed: int = 0) -> Concepts:
    """The same concepts with the λ (eq. 2) at which PFVs have so many non-zero codes on average.

    Within 2 %, or one code of one PFV where these are few, but never more than a tenth.

    Parameters
    ----------
    x
        PFVs (N, C), not centred; 200 of them, drawn with the seed, are enough.
    nonzeros
        By default :func:`wanted_nonzeros` of the block.

    Raises
    ------
    ValueError
        If no λ gives that many; see :func:`gig_helpers.lasso.lambda_for`.

    Examples
    --------
    >>> concepts = Concepts(torch.eye(4), torch.zeros(4), torch.arange(4))
    >>> x = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    >>> 2 <= tune(concepts, x, nonzeros=2).lam < 4
    True
    """
    if nonzeros is None:
        nonzeros = wanted_nonzeros(concepts.block, *concepts.vectors.shape)
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:200]
    some = x[chosen].to(concepts.vectors)
    # Where PFVs and codes are few, one code of one PFV may be more than two hundredths.
    rtol = min(max(0.02, 1 / (nonzeros * len(some))), 0.1)
    lam = lasso.lambda_for(some, concepts.vectors, nonzeros, beta=concepts.beta, rtol=rtol)
    return replace(concepts, lam=lam)


def load_concepts(
    network: Network, dataset: PFVDataset, profile: Profile, blocks: Iterable[str] | None = None
) -> dict[str, Concepts]:
    """Concepts with their λ from a PFV dataset (section 3.2), or what an equal run made.

    Parameters
    ----------
    blocks
        By default those of the profile.

    Returns
    -------
    dict
        ``{block: Concepts}``, on the network's device.

    Raises
    ------
    KeyError
        If the dataset has no PFVs of a block.
    ValueError
        As :func:`extract` and :func:`tune`.

    Examples
    --------
    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import load_pictures, sample
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> profile = Profile("mine", 16, 1, 0, 0, blocks=("layer4.1",), pfvs_per_concept=4)
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     dataset = sample(network, load_pictures("sample").subset([0]), profile)
    ...     concepts = load_concepts(network, dataset, profile)["layer4.1"]
    >>> concepts.vectors.shape, concepts.labels.shape, concepts.lam > 0
    (torch.Size([4, 512]), torch.Size([16]), True)
    """
    found = {}
    for block in profile.blocks if blocks is None else blocks:
        k = profile.n_concepts(network.channels(block), dataset.count(block))
        parts = _concepts(network, dataset, block, k, profile.seed)
        lam = float(parts.pop("lam"))
        here = {name: part.to(network.device) for name, part in parts.items()}
        found[block] = Concepts(**here, block=block, lam=lam)
    return found


@artifacts.cached("concepts", clustering, lasso, paper)
def _concepts(
    network: Network, dataset: PFVDataset, block: str, k: int, seed: int
) -> dict[str, Tensor]:
    x = dataset.vectors(block).to(network.device)
    beta = network.shift(block)
    # Where no batch norm says what "no concepts" is, the mean PFV does.
    beta = x.mean(dim=0) if beta is None else beta
    found = tune(extract(x, beta, k, seed, block=block), x, seed=seed)
    lam = torch.tensor(found.lam, dtype=torch.float64)
    return {"vectors": found.vectors, "beta": found.beta, "labels": found.labels, "lam": lam}


def nearest_concept(x: Tensor, concepts: Concepts) -> Tensor:
    """Concept (N,) with the largest cosine to each PFV (N, C), not centred (appendix B).

    Examples
    --------
    >>> concepts = Concepts(torch.eye(2), torch.ones(2), torch.arange(2))
    >>> nearest_concept(torch.tensor([[9.0, 2.0], [1.0, 3.0]]), concepts).tolist()
    [0, 1]
    """
    return clustering.nearest_centre(x - concepts.beta, concepts.vectors)

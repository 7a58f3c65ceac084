"""Rivals that are not the paper's: three autoencoders and three factorisations of PFVs.

To be imported by those who want them, which registers them: ``from gig_helpers.extractors import
overcomplete``. The autoencoders are of the package of that name (Fel, 2025), which is the extra
``rivals`` and wants a Python below 3.13; they are trained as that of eq. 11 is
(:mod:`gig_helpers.extractors.sae`): from the mean and scale, until they are flat. The
factorisations, which that package takes from scikit-learn too, need no extra.
"""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import matplotlib
import torch
from matplotlib import cm
from sklearn.decomposition import NMF, PCA, FastICA, non_negative_factorization
from torch import Tensor
from torch.nn import functional as F

from ..clustering import nearest_centre
from ..concepts import Concepts, extract, extractor
from ..lasso import wanted_nonzeros
from .sae import Encoded, SparseAutoencoder, standardized, train
from .simple import centre

NEED_PACKAGE = ("top_k", "archetypal", "matching_pursuit")
"""Those of :data:`gig_helpers.concepts.EXTRACTORS` that the package makes."""


def available(name: str) -> bool:
    """Can an extractor be run here, or does it want the package and that is missing?

    Examples
    --------
    >>> available("bisecting")
    True
    """
    return name not in NEED_PACKAGE or find_spec("overcomplete") is not None


@dataclass(frozen=True)
class TopKAutoencoder(SparseAutoencoder):
    """Concepts of a sparse autoencoder that keeps the largest codes of each PFV (Gao et al., 2024).

    Examples
    --------
    >>> parts = {"encoder": torch.eye(2), "encoder_bias": torch.zeros(2), "kept": 1}
    >>> sae = TopKAutoencoder(torch.eye(2), torch.zeros(2), torch.zeros(1), **parts)
    >>> sae.encode(torch.tensor([3.0, 4.0])).tolist()
    [0.0, 4.0]
    """

    kept: int = 1

    def encode(self, x: Tensor, *, tol: float = 0.0) -> Tensor:
        """The ``kept`` largest of :meth:`SparseAutoencoder.encode`'s codes, the others 0."""
        codes = super().encode(x)
        largest = codes.topk(self.kept, dim=-1)
        return torch.zeros_like(codes).scatter(-1, largest.indices, largest.values)


@dataclass(frozen=True)
class MatchingPursuit(Encoded):
    """Concepts of an autoencoder whose encoder is matching pursuit (Costa et al., 2025).

    Examples
    --------
    >>> pursuit = MatchingPursuit(torch.eye(2), torch.zeros(2), torch.zeros(1), steps=1)
    >>> pursuit.encode(torch.tensor([3.0, 4.0])).tolist()
    [0.0, 4.0]
    """

    steps: int = 1
    losses: tuple[float, ...] = ()

    def encode(self, x: Tensor, *, tol: float = 0.0) -> Tensor:
        """The concept that correlates most with what is left of x − β, ``steps`` times."""
        residual, squares = x - self.beta, self.vectors.square().sum(1)
        codes = x.new_zeros(*x.shape[:-1], len(self.vectors))
        for _ in range(self.steps):
            value, index = (residual @ self.vectors.T / squares).max(dim=-1, keepdim=True)
            codes.scatter_add_(-1, index, value)
            residual = residual - value * self.vectors[index[..., 0]]
        return codes


@dataclass(frozen=True)
class NonNegative(Encoded):
    """Concepts of NMF: neither they nor their codes are negative, and β is 0.

    Examples
    --------
    >>> nmf = NonNegative(torch.eye(2), torch.zeros(2), torch.zeros(1))
    >>> nmf.encode(torch.tensor([3.0, -4.0])).tolist()
    [3.0, 0.0]
    """

    def encode(self, x: Tensor, *, tol: float = 1e-4) -> Tensor:
        """Codes that are not negative, of the smallest squared error of ReLU(x)."""
        target = F.relu(x).reshape(-1, x.shape[-1]).cpu().numpy()
        codes = non_negative_factorization(
            target, H=self.vectors.cpu().numpy(), n_components=len(self.vectors), update_H=False,
            tol=tol,
        )[0]  # fmt: skip
        return torch.from_numpy(codes).to(x).reshape(*x.shape[:-1], -1)


def autoencoder(
    x: Tensor, beta: Tensor, k: int, seed: int = 0, *, kind: str = "TopKSAE", block: str = ""
) -> Encoded:
    """An autoencoder of the package that has as many codes as the paper's Lasso.

    ``"TopKSAE"`` (Gao et al., 2024), ``"RATopKSAE"``, whose atoms stay near averages of clusters'
    centres (Fel et al., 2025), or ``"MpSAE"`` (Costa et al., 2025). Units that would die are kept
    by the loss of the first two's source.

    Parameters
    ----------
    x, beta, k
        (N, C), (C,) and k, as in :func:`random_pfvs`, with its errors.

    Raises
    ------
    ImportError
        If the package is not there.

    Examples
    --------
    >>> autoencoder(torch.zeros(3, 2), torch.zeros(2), 4)
    Traceback (most recent call last):
        ...
    ValueError: ...
    """
    centre(x, beta, k)
    try:
        # Its pictures, unused here, ask for a function that newer versions of matplotlib lack.
        with patch.object(cm, "get_cmap", matplotlib.colormaps.__getitem__, create=True):
            from overcomplete import sae
            from overcomplete.sae.losses import top_k_auxiliary_loss
    except ImportError as error:
        raise ImportError(
            "this rival needs a Python below 3.13 and: pip install 'gig-helpers[rivals]'"
        ) from error
    scaled, mean, unit_length = standardized(x)
    kept, pursuit = max(1, round(wanted_nonzeros(block, k, x.shape[1]))), kind == "MpSAE"
    options: dict[str, Any] = {"k" if pursuit else "top_k": kept}
    if kind == "RATopKSAE":
        centres = extract(scaled, torch.zeros_like(mean), k, seed, average="raw").vectors
        options["points"] = centres
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(sae, kind)(x.shape[1], k, device=x.device, **options).to(x.dtype)

    def loss(target: Tensor, share: float) -> Tensor:
        pre_codes, codes, rebuilt = model(target)
        if pursuit:
            return (target - rebuilt).square().mean()
        return top_k_auxiliary_loss(target, rebuilt, pre_codes, codes, model.get_dictionary())

    generator = torch.Generator().manual_seed(seed)
    losses = train(list(model.parameters()), loss, scaled, generator)
    vectors = model.eval().get_dictionary().detach() * unit_length
    parts = vectors, mean, nearest_centre(x - mean, vectors), block
    if pursuit:
        return MatchingPursuit(*parts, steps=kept, losses=losses)
    linear = model.encoder.final_block[0]
    encoder = linear.weight.detach() / unit_length
    bias = linear.bias.detach() - encoder @ mean
    return TopKAutoencoder(*parts, encoder=encoder, encoder_bias=bias, losses=losses, kept=kept)


for _name, _title, _kind in (
    ("top_k", "top-k autoencoder", "TopKSAE"),
    ("archetypal", "archetypal autoencoder", "RATopKSAE"),
    ("matching_pursuit", "matching-pursuit autoencoder", "MpSAE"),
):
    extractor(_name, _title)(partial(autoencoder, kind=_kind))


@extractor("nmf", "NMF")
def nmf(x: Tensor, beta: Tensor, k: int, seed: int = 0, *, block: str = "") -> NonNegative:
    """NMF of activations ReLU(x), which is all that the network goes on with (Lee & Seung, 1999).

    An error that is measured against x counts what the ReLU takes away.

    Examples
    --------
    >>> bool((nmf(torch.randn(50, 4), torch.zeros(4), 3).vectors >= 0).all())
    True
    """
    centre(x, beta, k)
    active = F.relu(x)
    start = None if k <= min(x.shape) else "random"
    model = NMF(k, init=start, random_state=seed).fit(active.cpu().numpy())
    vectors = torch.from_numpy(model.components_).to(x)
    return NonNegative(vectors, torch.zeros_like(beta), nearest_centre(active, vectors), block)


@extractor("pca", "PCA")
def pca(x: Tensor, beta: Tensor, k: int, seed: int = 0, *, block: str = "") -> Concepts:
    """Principal components, of which there are as many as channels at most; β is the mean.

    Examples
    --------
    >>> pca(torch.randn(50, 4), torch.zeros(4), 8).vectors.shape
    torch.Size([4, 4])
    """
    rows = centre(x, x.mean(dim=0), k).cpu().numpy()
    return _of_rows(PCA(min(k, *x.shape), random_state=seed).fit(rows).components_, x, block)


@extractor("ica", "ICA")
def ica(x: Tensor, beta: Tensor, k: int, seed: int = 0, *, block: str = "") -> Concepts:
    """Independent components (FastICA, Hyvärinen & Oja, 2000), else as :func:`pca`.

    Examples
    --------
    >>> ica(torch.rand(500, 4), torch.zeros(4), 8).vectors.shape
    torch.Size([4, 4])
    """
    rows = centre(x, x.mean(dim=0), k).cpu().numpy()
    return _of_rows(FastICA(min(k, *x.shape), random_state=seed).fit(rows).mixing_.T, x, block)


def _of_rows(rows: Any, x: Tensor, block: str) -> Concepts:
    vectors = F.normalize(torch.from_numpy(rows).to(x), dim=1)
    mean = x.mean(dim=0)
    return Concepts(vectors, mean, nearest_centre(x - mean, vectors), block)

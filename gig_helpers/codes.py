"""PFVs to codes U with x ≈ β + Σ_j u_j v_j, few u_j not zero (eqs. 1, 2 and 9), and back."""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import lasso, traced
from . import network as network_module
from .concepts import Concepts
from .data import artifacts
from .network import Network


def encode(x: Tensor, concepts: Concepts, *, tol: float = 1e-5) -> Tensor:
    """Signed codes of PFVs (eq. 2), with the concepts' own β and λ.

    Without λ it is the concepts that make codes, if they can: a
    :class:`gig_helpers.extractors.sae.SparseAutoencoder` can.

    Parameters
    ----------
    x
        PFVs (..., C), not centred.
    tol
        Relative duality gap to reach; see :func:`gig_helpers.lasso.lasso_codes`.

    Returns
    -------
    Tensor
        (..., k), exactly 0 where a concept is not used.

    Raises
    ------
    ValueError
        If the concepts have no λ yet and make no codes, and as
        :func:`gig_helpers.lasso.lasso_codes`.

    Examples
    --------
    >>> concepts = Concepts(torch.eye(2), torch.ones(2), torch.arange(2), lam=1.0)
    >>> encode(torch.tensor([4.0, 1.5]), concepts).tolist()  # the rest, 0.5, is below λ
    [2.0, 0.0]
    """
    if concepts.lam is None:
        return concepts.codes(x)
    return lasso.lasso_codes(x, concepts.vectors, concepts.lam, beta=concepts.beta, tol=tol)


def reconstruct(codes: Tensor, concepts: Concepts) -> Tensor:
    """X̃ = UV + β (eq. 9): codes (..., k) → (..., C).

    Examples
    --------
    >>> concepts = Concepts(2 * torch.eye(2), torch.ones(2), torch.arange(2))
    >>> reconstruct(torch.tensor([3.0, 0.0]), concepts).tolist()
    [7.0, 1.0]
    """
    return codes @ concepts.vectors + concepts.beta


@torch.no_grad()
def picture_codes(
    network: Network, images: Tensor, concepts: Mapping[str, Concepts]
) -> dict[str, Tensor]:
    """Codes of every position of some pictures, at several blocks (eqs. 1 and 2).

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).
    concepts
        ``{block: Concepts}``

    Returns
    -------
    dict
        ``{block: (N, H·W, k)}`` in the network's order, positions row-major, or tokens.

    Raises
    ------
    ValueError
        As :func:`encode`.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> concepts = Concepts(torch.randn(3, 512), torch.zeros(512), torch.arange(3), lam=1.0)
    >>> codes = picture_codes(network, torch.randn(1, 3, 64, 64), {"layer4.1": concepts})
    >>> codes["layer4.1"].shape  # 64 pixels are 2 positions of layer 4
    torch.Size([1, 4, 3])
    """
    maps = network.preactivations(images, concepts)
    return {
        block: encode(network.positions(x, block), concepts[block]) for block, x in maps.items()
    }


def load_codes(network: Network, images: Tensor, concepts: Concepts) -> Tensor:
    """Codes (N, H·W, k) of some pictures (eq. 2), each from disk where an equal run left them.

    Parameters
    ----------
    images
        Normalised pictures (N, 3, H, W).

    Examples
    --------
    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> network, images = Network(resnet18(num_classes=5), device="cpu"), torch.randn(2, 3, 64, 64)
    >>> vectors = torch.randn(3, 512)
    >>> concepts = Concepts(vectors, torch.zeros(512), torch.arange(3), "layer4.1", lam=1.0)
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     made, read = (load_codes(network, images, concepts) for _ in range(2))
    ...     len(os.listdir(here))  # one file per picture
    2
    >>> made.shape, torch.equal(made, read)
    (torch.Size([2, 4, 3]), True)
    """
    found = []
    for image in images:
        stored = _sparse_codes(network, image, concepts)
        place, shape = stored["place"].T, stored["shape"].tolist()
        codes = torch.sparse_coo_tensor(place, stored["values"], shape, check_invariants=True)
        found.append(codes.to_dense().to(concepts.vectors))
    return torch.stack(found)


@artifacts.cached("codes", traced, network_module, lasso)
def _sparse_codes(network: Network, image: Tensor, concepts: Concepts) -> dict[str, Tensor]:
    codes = picture_codes(network, image[None], {concepts.block: concepts})[concepts.block][0]
    sparse = codes.to_sparse()
    place, values = sparse.indices().T.int(), sparse.values()
    return {"place": place, "values": values, "shape": torch.tensor(codes.shape)}


def relative_l2(x: Tensor, x_hat: Tensor) -> Tensor:
    """‖x − x̂‖ / ‖x‖ of each PFV (section 4.2.2); (..., C) → (...,).

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> relative_l2(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])).item()
    0.20000000298023224
    """
    if x.shape != x_hat.shape:
        raise ValueError(f"shapes differ: {tuple(x.shape)} and {tuple(x_hat.shape)}")
    return (x - x_hat).norm(dim=-1) / x.norm(dim=-1)


def l0_ratio(codes: Tensor) -> Tensor:
    """Share of zero codes of each PFV (section 4.2.2); (..., k) → (...,).

    Examples
    --------
    >>> l0_ratio(torch.tensor([0.0, 2.0, 0.0, 0.0])).item()
    0.75
    """
    return (codes == 0).float().mean(-1)

"""PFVs for the eye: the crop around each, its square and its iERF (the paper's Figure 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import srd
from ..concepts import Concepts
from ..data.pictures import Pictures
from ..network import Network
from ..pfv import PFVDataset

SQUARE_SHARE = 0.7
"""Share of an iERF's positive mass that a red square holds."""


def ierfs(
    network: Network, pictures: Pictures, dataset: PFVDataset, block: str, indices: Tensor
) -> Tensor:
    """iERFs of some PFVs of the dataset, made when asked for; shape (m, H_img, W_img).

    Parameters
    ----------
    indices
        Rows (m,) of ``dataset.vectors(block)``.

    Raises
    ------
    ValueError
        If no PFV is asked for.

    Notes
    -----
    Effective receptive fields by the sharing ratio (eq. 10); each sums to 1.

    Examples
    --------
    A dataset of two PFVs of one picture, written by hand.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.torch import save_file
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import load_pictures
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> pictures, block = load_pictures("sample").subset([0]), "layer1.0"
    >>> columns = {f"{block}.picture_ids": torch.tensor([0, 0])}
    >>> columns[f"{block}.positions"] = torch.tensor([[10, 10], [28, 40]])
    >>> with TemporaryDirectory() as here:
    ...     save_file(columns, f"{here}/shard-000000.safetensors")
    ...     dataset = PFVDataset(Path(here), "", (block,), pictures.paths, pictures.labels, {})
    ...     maps = ierfs(network, pictures, dataset, block, torch.tensor([1]))
    >>> maps.shape, round(float(maps.sum()), 3)
    (torch.Size([1, 224, 224]), 1.0)
    >>> bool(maps[0, 4 * 28, 4 * 40] != 0), bool(maps[0, 40, 40] != 0)  # 4 pixels per position
    (True, False)
    """
    picture_ids = dataset.picture_ids(block)[indices]
    positions = dataset.positions(block)[indices]
    if not len(indices):
        raise ValueError("no PFV was asked for: indices is empty")
    # A picture again for each of its PFVs: batches of pictures cost less than sharing saves.
    images = torch.stack([pictures[i] for i in picture_ids.tolist()])
    return srd.ierf(network, images, block, positions).cpu()


@dataclass(frozen=True)
class Example:
    """One PFV as Figure 1 shows it: the part of the picture around it, its square and its iERF.

    Attributes
    ----------
    crop
        RGB part of the picture, (S, S, 3), uint8.
    ierf
        The iERF's same part, (S, S).
    square
        Left, top and side, in pixels of the crop, of the square that holds most of the iERF.
    picture, label
        Path of the picture, and the name of its class or None.

    Examples
    --------
    >>> crop, ierf = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40))
    >>> example = Example(crop, ierf, (10, 10, 20), "a.png", label=None)
    >>> left, top, side = example.square
    >>> example.crop[top : top + side, left : left + side].shape
    (20, 20, 3)
    """

    crop: np.ndarray
    ierf: np.ndarray
    square: tuple[int, int, int]
    picture: str
    label: str | None


def examples(
    network: Network, pictures: Pictures, dataset: PFVDataset, block: str, indices: Tensor
) -> list[Example]:
    """PFVs of the dataset as crops with square and iERF, as in the paper's Figure 1.

    The square holds most of the iERF's positive mass; the crop has twice its side, for context.

    Parameters
    ----------
    indices
        Rows (m,) of ``dataset.vectors(block)``.

    Examples
    --------
    A dataset of two PFVs of one picture, written by hand.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.torch import save_file
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import load_pictures
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> pictures, block = load_pictures("sample").subset([0]), "layer1.0"
    >>> columns = {f"{block}.picture_ids": torch.tensor([0, 0])}
    >>> columns[f"{block}.positions"] = torch.tensor([[10, 10], [28, 40]])
    >>> with TemporaryDirectory() as here:
    ...     save_file(columns, f"{here}/shard-000000.safetensors")
    ...     dataset = PFVDataset(Path(here), "", (block,), pictures.paths, pictures.labels, {})
    ...     (shot,) = examples(network, pictures, dataset, block, torch.tensor([1]))
    >>> left, top, side = shot.square
    >>> shot.crop.shape == (2 * side, 2 * side, 3), shot.picture, shot.label
    (True, 'foolbox/imagenet_00_243.jpg', 'bull mastiff')
    """
    found = []
    maps = ierfs(network, pictures, dataset, block, indices)
    for picture, ierf in zip(dataset.picture_ids(block)[indices].tolist(), maps, strict=True):
        top, left, side = square(ierf)
        edge = min(2 * side, *ierf.shape)
        y = min(max(top - (edge - side) // 2, 0), ierf.shape[0] - edge)
        x = min(max(left - (edge - side) // 2, 0), ierf.shape[1] - edge)
        part = slice(y, y + edge), slice(x, x + edge)
        crop, place = np.asarray(pictures.image(picture))[part], (left - x, top - y, side)
        label = pictures.labels[picture]
        name = None if label is None else pictures.classes[label]
        found.append(Example(crop, ierf[part].numpy(), place, pictures.paths[picture], name))
    return found


def square(ierf: Tensor, share: float = SQUARE_SHARE) -> tuple[int, int, int]:
    """Square around an iERF that holds a share of its positive mass: a red box of Figure 1.

    The smallest around the centre of mass; the paper does not say how it draws them.

    Parameters
    ----------
    ierf
        (H_img, W_img)
    share
        Fraction of Σ max(iERF, 0).

    Returns
    -------
    top, left, side
        In pixels; the square is shifted, never cut, to stay inside the picture.

    Examples
    --------
    >>> ierf = torch.zeros(100, 100)
    >>> ierf[40:60, 70:90] = 1 / 400
    >>> square(ierf, share=1.0)
    (40, 70, 20)
    """
    mass = ierf.clamp(min=0).double()
    total = mass.sum()
    height, width = mass.shape
    if total <= 0:
        return 0, 0, min(height, width)
    rows, columns = torch.arange(height), torch.arange(width)
    y = float((mass.sum(dim=1) * rows).sum() / total)
    x = float((mass.sum(dim=0) * columns).sum() / total)
    for side in range(8, min(height, width) + 1, 4):
        top = round(min(max(y - side / 2, 0), height - side))
        left = round(min(max(x - side / 2, 0), width - side))
        if mass[top : top + side, left : left + side].sum() >= share * total:
            return top, left, side
    return 0, 0, min(height, width)


def nearest_examples(
    network: Network, pictures: Pictures, dataset: PFVDataset, concepts: Concepts,
    chosen: Sequence[int], count: int = 5,
) -> list[list[Example]]:  # fmt: skip
    """The PFVs nearest to each of some concepts (Figures 7 to 10), the nearest first.

    Parameters
    ----------
    chosen
        Numbers of the concepts.
    count
        Examples per concept.

    Examples
    --------
    A dataset of two PFVs of one picture, written by hand, each its own concept.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from safetensors.torch import save_file
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import load_pictures
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> pictures, block = load_pictures("sample").subset([0]), "layer1.0"
    >>> columns = {f"{block}.picture_ids": torch.tensor([0, 0])}
    >>> columns[f"{block}.positions"] = torch.tensor([[10, 10], [28, 40]])
    >>> columns[f"{block}.vectors"] = torch.eye(2)
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.arange(2), block)
    >>> with TemporaryDirectory() as here:
    ...     save_file(columns, f"{here}/shard-000000.safetensors")
    ...     dataset = PFVDataset(Path(here), "", (block,), pictures.paths, pictures.labels, {})
    ...     shots = nearest_examples(network, pictures, dataset, concepts, [1], count=2)
    >>> len(shots), [shot.label for shot in shots[0]]
    (1, ['bull mastiff', 'bull mastiff'])
    """
    rows = concepts.nearest(dataset.vectors(concepts.block), count)[list(chosen)]
    found = examples(network, pictures, dataset, concepts.block, rows.flatten())
    return [found[n * count : (n + 1) * count] for n in range(len(rows))]


def likeness(
    network: Network, dataset: PFVDataset, concepts: Concepts, importance: Tensor,
    classes: Sequence[int], *, among: Tensor | None = None, first: int = 3, count: int = 10,
) -> Tensor:  # fmt: skip
    """How alike a picture's class is to what its most relevant concepts show (Figure 4, bottom).

    The mean cosine between the class's row of the classifier and those of the classes that the
    network gives to the pictures of the concepts' nearest PFVs.

    Parameters
    ----------
    importance
        Importance (N, k) of the concepts for each picture's class.
    classes
        The pictures' classes (N,).
    among
        Which of the block's PFVs (n,) may be nearest; by default all.
    first
        Concepts per picture.
    count
        PFVs per concept.

    Returns
    -------
    Tensor
        (N,), 1 where all of them are of the picture's own class.

    Examples
    --------
    Two PFVs, of pictures of two classes at right angles, each its own concept.

    >>> from types import SimpleNamespace
    >>> network = SimpleNamespace(class_vectors=torch.eye(2))
    >>> dataset = SimpleNamespace(
    ...     vectors=lambda block: torch.eye(2), picture_ids=lambda block: torch.arange(2),
    ...     predictions=lambda: torch.tensor([0, 1]),
    ... )
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.arange(2))
    >>> importance = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    >>> likeness(network, dataset, concepts, importance, [0, 1], first=1, count=1).tolist()
    [1.0, 0.0]
    """
    x, ids = dataset.vectors(concepts.block), dataset.picture_ids(concepts.block)
    if among is not None:
        x, ids = x[among], ids[among]
    used, place = importance.topk(first, dim=1).indices.unique(return_inverse=True)
    nearest = replace(concepts, vectors=concepts.vectors[used]).nearest(x, count)
    rows = F.normalize(network.class_vectors, dim=1).cpu()
    shown = rows[dataset.predictions()[ids[nearest]]][place.cpu()]
    return (shown * rows[list(classes)][:, None, None]).sum(dim=3).mean(dim=(1, 2))


def localize(
    network: Network, image: Tensor, block: str, attributions: Tensor, count: int = 24
) -> Tensor:
    """Carry a concept's attributions to pixels, Σ_p a_p · iERF_p ("concept localization", Fig. 1).

    An iERF sums to one, so the map sums to the attributions that go into it: those of the ``count``
    strongest positions, which hold most of the whole as a rule.

    Parameters
    ----------
    image
        (1, 3, H_img, W_img), normalised.
    attributions
        (H·W,), one per position of the block's map, row by row, or (P,), one per token: of
        :func:`gig` or :func:`class_relevance` with ``positions=True``, or any other value.
    count
        Positions to carry, strongest absolute values first. Each is one more map that SRD takes
        down to the pixels; they share the forward pass.

    Returns
    -------
    Tensor
        (H_img, W_img)

    Raises
    ------
    ValueError
        If ``attributions`` has not one value per position.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> attributions = torch.zeros(64)  # 32 pixels are 8 × 8 positions of layer 1
    >>> attributions[[9, 60]] = torch.tensor([3.0, -1.0])
    >>> location = localize(network, torch.randn(1, 3, 32, 32), "layer1.0", attributions, count=2)
    >>> location.shape, round(float(location.sum()), 3)
    (torch.Size([32, 32]), 2.0)
    """
    own = network.own_size(block, image.shape[2:])
    if attributions.shape != (math.prod(own),):
        raise ValueError(
            f"{block}: expected attributions ({math.prod(own)},), one per position, got "
            f"{tuple(attributions.shape)}"
        )
    best = attributions.abs().topk(min(count, len(attributions))).indices
    places = torch.stack(torch.unravel_index(best, own), dim=1).cpu()
    fields = srd.ierf(network, image, block, places[None])[0]
    return torch.tensordot(attributions[best], fields.to(attributions), dims=1)

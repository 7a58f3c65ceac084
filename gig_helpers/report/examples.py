"""PFVs for the eye: the crop around each, its square and its iERF (the paper's Figure 1)."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from networkx import DiGraph
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import to_pil_image

from .. import srd
from ..codes import Decomposition
from ..concepts import Concepts
from ..families import ranks
from ..network import Network
from ..pfv import PFVDataset

SQUARE_SHARE = 0.7
"""Share of an iERF's positive mass that a red square holds."""

BY_HAND = Path(__file__).parents[1] / "data/names.json"
"""Names of the sample's concepts, by the book's authors."""


def ierfs(pfvs: PFVDataset, block: str, rows: Tensor | Sequence[int]) -> Tensor:
    """iERFs of some PFVs of the dataset, made when asked for; shape (m, H_img, W_img).

    Parameters
    ----------
    rows
        Rows (m,) of ``pfvs.vectors(block)``.

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
    ...     pfvs = PFVDataset(Path(here), "", (block,), network, pictures, {})
    ...     maps = ierfs(pfvs, block, [1])
    >>> maps.shape, round(float(maps.sum()), 3)
    (torch.Size([1, 224, 224]), 1.0)
    >>> bool(maps[0, 4 * 28, 4 * 40] != 0), bool(maps[0, 40, 40] != 0)  # 4 pixels per position
    (True, False)
    """
    if not len(rows):
        raise ValueError(f"no PFV of {block} was asked for: name rows of pfvs.vectors({block!r})")
    # A picture again for each of its PFVs: batches of pictures cost less than sharing saves.
    images = torch.stack([pfvs.pictures[i] for i in pfvs.picture_ids(block)[rows].tolist()])
    places = pfvs.positions(block)[rows]
    return srd.ierf(pfvs.network, images, block, places, rule=pfvs.rule).cpu()


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


def examples(pfvs: PFVDataset, block: str, rows: Tensor | Sequence[int]) -> list[Example]:
    """PFVs of the dataset as crops with square and iERF, as in the paper's Figure 1.

    The square holds most of the iERF's positive mass; the crop has twice its side, for context.
    Each is made once for a dataset, and kept with it.

    Parameters
    ----------
    rows
        Rows (m,) of ``pfvs.vectors(block)``.

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
    ...     pfvs = PFVDataset(Path(here), "", (block,), network, pictures, {})
    ...     (shot,) = examples(pfvs, block, [1])
    >>> left, top, side = shot.square
    >>> shot.crop.shape == (2 * side, 2 * side, 3), shot.picture, shot.label
    (True, 'foolbox/imagenet_00_243.jpg', 'bull mastiff')
    >>> examples(pfvs, block, [1])[0] is shot
    True
    """
    wanted = torch.as_tensor(rows).tolist()
    if new := [row for row in dict.fromkeys(wanted) if (block, row) not in pfvs.shown]:
        ids = pfvs.picture_ids(block)[new].tolist()
        for row, picture, ierf in zip(new, ids, ierfs(pfvs, block, new), strict=True):
            pfvs.shown[block, row] = _example(pfvs, picture, ierf)
    return [pfvs.shown[block, row] for row in wanted]


def _example(pfvs: PFVDataset, picture: int, ierf: Tensor) -> Example:
    top, left, side = square(ierf)
    edge = min(2 * side, *ierf.shape)
    y = min(max(top - (edge - side) // 2, 0), ierf.shape[0] - edge)
    x = min(max(left - (edge - side) // 2, 0), ierf.shape[1] - edge)
    part, pictures = (slice(y, y + edge), slice(x, x + edge)), pfvs.pictures
    # Copies, since it is kept: a part would keep the whole, of the iERFs the whole batch's.
    crop, seen = np.asarray(pictures.image(picture))[part].copy(), ierf[part].numpy().copy()
    label = pictures.labels[picture]
    name = None if label is None else pictures.classes[label]
    return Example(crop, seen, (left - x, top - y, side), pictures.paths[picture], name)


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
    y = float(mass.sum(dim=1) @ torch.arange(height).double() / total)
    x = float(mass.sum(dim=0) @ torch.arange(width).double() / total)
    for side in range(8, min(height, width) + 1, 4):
        top = round(min(max(y - side / 2, 0), height - side))
        left = round(min(max(x - side / 2, 0), width - side))
        if mass[top : top + side, left : left + side].sum() >= share * total:
            return top, left, side
    return 0, 0, min(height, width)


def nearest_examples(
    pfvs: PFVDataset, concepts: Concepts, chosen: Sequence[int], count: int = 5
) -> list[list[Example]]:
    """The PFVs nearest to each of some concepts (Figures 7 to 10), each of another photograph.

    The nearest first. Only where the nearest are of fewer photographs do some show again: views and
    neighbours of one photograph are nearest to each other, and say nothing of what others share.

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
    ...     pfvs = PFVDataset(Path(here), "", (block,), network, pictures, {})
    ...     shots = nearest_examples(pfvs, concepts, [1], count=2)
    >>> len(shots), [shot.label for shot in shots[0]]
    (1, ['bull mastiff', 'bull mastiff'])
    """
    x, origin = pfvs.vectors(concepts.block), pfvs.photographs[pfvs.picture_ids(concepts.block)]
    near = concepts.nearest(x, len(x), chosen)
    rows = [row[ranks(origin[row]).argsort(stable=True)][:count].tolist() for row in near]
    shots = iter(examples(pfvs, concepts.block, sum(rows, [])))
    return [[next(shots) for _ in row] for row in rows]


def named(
    pfvs: PFVDataset, concepts: Mapping[str, Concepts], path: str | Path = BY_HAND
) -> dict[str, str]:  # fmt: skip
    """Names that a reader gave to concepts by hand, each by a PFV that it holds; not in the paper.

    A concept's number is one clustering's; a PFV is a place in a photograph, and so a name finds
    the concept that holds it, in any clustering, and at any level.

    Parameters
    ----------
    path
        A JSON list of ``{"name", "block", "picture", "box", "position"}``: the picture by its name
        and box as in :class:`.Pictures`, row and column in the block's map. Without one, those of
        the sample that come with the module. PFVs that the data set has not are passed over.

    Returns
    -------
    dict
        ``{"layer4.2/9": "car"}``, as :func:`.concept_graph` takes them; of several names of one
        concept, all.

    Examples
    --------
    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet50
    >>> from gig_helpers import Profile, fit_concepts, load_pictures, sample
    >>> network, profile = Network(resnet50(), device="cpu"), Profile(blocks=("layer4.2",))
    >>> pictures = load_pictures("sample", network).subset([0])
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     pfvs = sample(network, pictures, profile)
    ...     row, column = pfvs.positions("layer4.2")[0].tolist()
    ...     name = {"name": "paw", "block": "layer4.2", "picture": pictures.paths[0]}
    ...     name |= {"box": pictures.boxes[0], "position": [row, column]}
    ...     _ = (Path(here) / "mine.json").write_text(json.dumps([name]))
    ...     list(named(pfvs, fit_concepts(pfvs, profile), Path(here) / "mine.json").values())
    ['paw']
    """
    places = list(zip(pfvs.pictures.paths, pfvs.pictures.boxes, strict=True))
    found: dict[str, list[str]] = {}
    for entry in json.loads(Path(path).expanduser().read_text(encoding="utf-8")):
        block, where = entry["block"], (entry["picture"], tuple(entry["box"]))
        if block not in concepts:
            continue
        there = torch.tensor([place == where for place in places])[pfvs.picture_ids(block)]
        there &= (pfvs.positions(block) == torch.tensor(entry["position"])).all(dim=1)
        for concept in concepts[block].assigned.cpu()[there].unique().tolist():
            found.setdefault(f"{block}/{concept}", []).append(entry["name"])
    return {node: ", ".join(names) for node, names in found.items()}


@dataclass(frozen=True)
class Illustrated:
    """A concept graph with the pictures that its figures show; see :func:`illustrate`.

    Attributes
    ----------
    graph
        The graph itself, whose concept nodes now know the number of their ``photographs``.
    examples
        Examples of each concept node, the nearest first.
    faces
        A picture of each class, by its number.

    Examples
    --------
    >>> graph = DiGraph(blocks=[], classes=[13])
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> Illustrated(graph, {}, {13: Image.new("RGB", (224, 224))}).faces[13].size
    (224, 224)
    """

    graph: DiGraph
    examples: Mapping[str, Sequence[Example]]
    faces: Mapping[int, Image.Image]


def illustrate(graph: DiGraph, d: Decomposition, pfvs: PFVDataset, count: int = 1) -> Illustrated:
    """The PFVs nearest to a graph's concepts, and a picture of each of its classes (Figure 1).

    Parameters
    ----------
    graph
        Of :func:`.concept_graph`. Its concept nodes get ``photographs``: how many the
        PFVs that made the concept come from; 0 of an extractor whose concepts have none.
    d
        What the graph was made of: its pictures, and its concepts.
    pfvs
        What the concepts were made of.
    count
        Examples per concept.

    Examples
    --------
    Two PFVs of one picture, each its own concept, and the graph that the first of them is in.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from types import SimpleNamespace
    >>> from safetensors.torch import save_file
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import load_pictures
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> pictures, block = load_pictures("sample").subset([0]), "layer1.0"
    >>> columns = {f"{block}.picture_ids": torch.tensor([0, 0])}
    >>> columns[f"{block}.positions"] = torch.tensor([[10, 10], [28, 40]])
    >>> columns[f"{block}.vectors"] = torch.eye(2)
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.arange(2), block)
    >>> graph = DiGraph(blocks=[block], classes=[3], labels=[3])
    >>> graph.add_node(f"{block}/0", kind="concept", block=block, concept=0)
    >>> graph.add_node("class/3", kind="class", block="class", name="class 3")
    >>> d = SimpleNamespace(network=network, images=pictures[0][None], concepts={block: concepts})
    >>> with TemporaryDirectory() as here:
    ...     save_file(columns, f"{here}/shard-000000.safetensors")
    ...     pfvs = PFVDataset(Path(here), "", (block,), network, pictures, {})
    ...     shown = illustrate(graph, d, pfvs)
    >>> shown.graph.nodes[f"{block}/0"]["photographs"], len(shown.examples[f"{block}/0"])
    (1, 1)
    >>> np.array_equal(shown.faces[3], pictures.image(0))  # normalised and back
    True
    """
    shots: dict[str, list[Example]] = {}
    for block in graph.graph["blocks"]:
        concepts, origin = d.concepts[block], pfvs.photographs[pfvs.picture_ids(block)]
        if len(concepts.labels) < len(origin):  # made without those that are held out
            origin = origin[~pfvs.held_out(block)]
        chosen = {n: q for n, q in graph.nodes(data="concept") if n.startswith(f"{block}/")}
        near = nearest_examples(pfvs, concepts, [*chosen.values()], count)
        shots |= zip(chosen, near, strict=True)
        for node, q in chosen.items():
            graph.nodes[node]["photographs"] = len(origin[concepts.members(q).cpu()].unique())
    first = [graph.graph["labels"].index(c) for c in graph.graph["classes"]]
    own = d.network.preprocessing
    mean, std = (torch.tensor(values)[:, None, None] for values in (own.mean, own.std))
    pixels = (255 * (d.images[first].cpu() * std + mean)).round().clamp(0, 255).byte()
    faces = dict(zip(graph.graph["classes"], map(to_pil_image, pixels), strict=True))
    return Illustrated(graph, shots, faces)


def likeness(
    pfvs: PFVDataset, concepts: Concepts, importance: Tensor, classes: Sequence[int], *,
    among: Tensor | None = None, first: int = 3, count: int = 10,
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
    >>> pfvs = SimpleNamespace(
    ...     network=SimpleNamespace(class_vectors=torch.eye(2)),
    ...     vectors=lambda block: torch.eye(2), picture_ids=lambda block: torch.arange(2),
    ...     predictions=lambda: torch.tensor([0, 1]),
    ... )
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.arange(2))
    >>> importance = torch.tensor([[2.0, 1.0], [2.0, 1.0]])
    >>> likeness(pfvs, concepts, importance, [0, 1], first=1, count=1).tolist()
    [1.0, 0.0]
    """
    x, ids = pfvs.vectors(concepts.block), pfvs.picture_ids(concepts.block)
    if among is not None:
        x, ids = x[among], ids[among]
    used, place = importance.topk(first, dim=1).indices.unique(return_inverse=True)
    nearest = concepts.nearest(x, count, used.to(concepts.vectors.device))
    rows = F.normalize(pfvs.network.class_vectors, dim=1).cpu()
    shown = rows[pfvs.predictions()[ids[nearest]]][place.cpu()]
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
    if (got := tuple(attributions.shape)) != (places := (math.prod(own),)):
        raise ValueError(f"{block}: expected attributions {places}, one per position, got {got}")
    best = attributions.abs().topk(min(count, len(attributions))).indices
    positions = torch.stack(torch.unravel_index(best, own), dim=1).cpu()
    fields = srd.ierf(network, image, block, positions[None])[0]
    return torch.tensordot(attributions[best], fields.to(attributions), dims=1)


def on_mask(relevance: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Does relevance lie where the cause is known to lie? Mass and rank accuracy.

    Of positive relevance the share on the mask, and of as many highest pixels as the mask has the
    share that lies on it (Arras et al., CLEVR-XAI, 2022; as in Quantus, of a map without its
    negative part). Ties among pixels are broken by their place. Not in the paper.

    Parameters
    ----------
    relevance
        Maps (N, H, W).
    mask
        (N, H, W), true where the cause is.

    Returns
    -------
    mass, rank
        (N,) each, 0 to 1; NaN where a mask is empty, or nothing is relevant.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> relevance = torch.tensor([[[3.0, 1.0], [-2.0, 0.0]]])
    >>> mass, rank = on_mask(relevance, torch.tensor([[[True, False], [True, False]]]))
    >>> mass.tolist(), rank.tolist()  # of the two highest pixels one is on the mask
    ([0.75], [0.5])
    """
    if relevance.shape != mask.shape or relevance.ndim != 3:
        got = f"{tuple(relevance.shape)} and {tuple(mask.shape)}"
        raise ValueError(f"expected maps and masks (N, H, W) of one shape, got {got}")
    flat, inside = relevance.flatten(1).double().clamp(min=0), mask.flatten(1).bool()
    mass = (flat * inside).sum(dim=1) / flat.sum(dim=1)
    ranks = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    size = inside.sum(dim=1)
    rank = ((ranks < size[:, None]) & inside).sum(dim=1) / size
    known = (size > 0) & (flat.sum(dim=1) > 0)
    return mass.where(known, torch.nan), rank.where(known, torch.nan)

"""What an atlas shows of a data set: relevance, places and edges of every family; no pictures here.

Not in the paper, whose graphs are "dataset-wide" but drawn of a picture or two. Each photograph's
part is kept on disk, so that a run that was killed goes on where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ..clustering import BisectingSphericalKMeans
from ..codes import Decomposition, decompose
from ..concepts import Concepts
from ..data import artifacts
from ..importance import attribute
from ..network import Network
from ..pfv import PFVDataset

TOP = 2
"""Families of a class and block whose own inputs are asked for: each costs backward passes."""

TOLERANCE = 0.25
"""Completeness gap that a photograph's attributions may leave: means over a class are shown."""

CELLS = 14
"""Rows and columns, at most, of the map that says where in a photograph a family is."""

SPLITS = 3
"""Halvings of the photographs behind :func:`stability`."""


@dataclass(frozen=True)
class Gathered:
    """What N photographs, one view of each, say of a network's concepts; see :func:`gather`.

    Attributes
    ----------
    pictures, classes
        Index of each photograph's view among the pictures, and its class.
    relevance
        ``{block: (N, k + 1)}`` of atoms for the photograph's class, the rest last (eq. 7).
    used
        ``{block: (N, K)}``: which families a photograph uses.
    where
        ``{block: (N, K, rows, columns)}``: where in the photograph its families' relevance is, in
        16 bits; no rows where a block's positions have no place.
    gaps
        ``{block: (N,)}``, completeness gaps as shares of the class's change.
    targets
        ``{class: {block: [family, …]}}``, those with the largest mean relevance.
    fed
        ``{block: (T, k + 1)}`` of each photograph: GIG (eq. 5) of the block's atoms, and of its
        rest, for the next block's targets.

    Examples
    --------
    >>> fed = [{"a": torch.zeros(1, 3)}, {"a": torch.ones(1, 3)}]
    >>> relevance = {"a": torch.ones(2, 3)}
    >>> found = Gathered([4, 9], torch.tensor([7, 7]), relevance, {}, {}, {}, {}, fed)
    >>> found.of_class(7).tolist(), found.of_class(8).tolist()
    ([0, 1], [])
    >>> found.mean_fed([0, 1])["a"].tolist()
    [[0.5, 0.5, 0.5]]
    """

    pictures: list[int]
    classes: Tensor
    relevance: dict[str, Tensor]
    used: dict[str, Tensor]
    where: dict[str, Tensor]
    gaps: dict[str, Tensor]
    targets: dict[int, dict[str, list[int]]]
    fed: list[dict[str, Tensor]]

    def of_class(self, label: int) -> Tensor:
        """Which of the photographs (n,) are of a class."""
        return (self.classes == label).nonzero()[:, 0]

    def mean_fed(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """``{block: (T, k + 1)}``, the mean edges of some photographs of one class."""
        blocks = self.fed[rows[0]]
        return {b: torch.stack([self.fed[n][b] for n in rows]).mean(dim=0) for b in blocks}


def gather(pfvs: PFVDataset, concepts: Mapping[str, Concepts], batch_size: int = 16) -> Gathered:
    """Relevance and edges of every photograph of a data set (eqs. 5 and 7), for an atlas.

    Of each photograph one view, for its class: its label, or what the network says. Attributions
    go to the network's own map, with the rest as one more source.

    Raises
    ------
    ValueError
        If the concepts were not made of all of these PFVs.

    Examples
    --------
    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Profile, fit_concepts, load_pictures, sample
    >>> network = Network(resnet18(), device="cpu")
    >>> pictures, profile = load_pictures("sample", network), Profile(blocks=("layer4.1",))
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     pfvs = sample(network, pictures.subset([0]), profile)
    ...     found = gather(pfvs, fit_concepts(pfvs, profile))
    >>> found.relevance["layer4.1"].shape, found.where["layer4.1"].shape
    (torch.Size([1, 4]), torch.Size([1, 3, 7, 7]))
    """
    network, classes = pfvs.network, pfvs.classes()
    for block, here in concepts.items():
        if len(here.labels) != pfvs.count(block):
            raise ValueError(
                f"{block}: concepts of {len(here.labels)} PFVs, a data set of "
                f"{pfvs.count(block)}: give the concepts that fit_concepts made of all of them"
            )
    read = [i for i, label in enumerate(classes.tolist()) if label >= 0]
    views = sorted({int(pfvs.photographs[i]): i for i in reversed(read)}.values())
    with torch.no_grad():
        empty = {block: _without_concepts(network, here) for block, here in concepts.items()}
    parts = []
    for i in tqdm(views, desc="atlas: relevance", unit="photograph"):
        d = decompose(network, pfvs.pictures[[i]], concepts)
        parts.append(_brought(d, int(classes[i]), empty, TOLERANCE, batch_size))
    of = classes[views]
    blocks = d.blocks
    relevance, used, where, gaps = (
        {block: torch.stack([part[f"{block}.{name}"] for part in parts]) for block in blocks}
        for name in ("relevance", "used", "where", "gap")
    )
    targets = {
        label: {b: _strongest(relevance[b][of == label], concepts[b]) for b in blocks}
        for label in of.unique().tolist()
    }
    fed = []
    for i in tqdm(views, desc="atlas: edges", unit="photograph"):
        d = decompose(network, pfvs.pictures[[i]], concepts)
        fed.append(_fed(d, targets[int(classes[i])], TOLERANCE, batch_size))
    return Gathered(views, of, relevance, used, where, gaps, targets, fed)


def _without_concepts(network: Network, here: Concepts) -> Tensor:
    """Logits (classes,) where a path begins: β at every position."""
    positions = int(torch.tensor(network.own_size(here.block)).prod())
    return network.segment(here.block)(here.beta.to(network.dtype).expand(1, positions, -1))[0]


def _strongest(relevance: Tensor, here: Concepts) -> list[int]:
    mean = here.gathered(relevance[:, :-1].mean(dim=0))
    values, families = mean.topk(min(TOP, len(mean)))
    return families[values > 0].tolist()


@artifacts.cached("atlas-relevance", ignore=("batch_size",))
def _brought(
    d: Decomposition, label: int, empty: Mapping[str, Tensor], tolerance: float, batch_size: int
) -> dict[str, Tensor]:
    """One photograph's relevances at every block, where they are, and what they miss."""
    atoms = replace(d, concepts={block: here.at(None) for block, here in d.concepts.items()})
    options: dict[str, Any] = {"rest": True, "tolerance": tolerance, "batch_size": batch_size}
    last, parts = d.blocks[-1], dict[str, Tensor]()
    with torch.no_grad():  # from the last block's own map, which is there already
        x = atoms.reconstruction(last) + atoms.residual(last)
        whole = d.network.segment(last)(x)[0, label]
    for block, here in d.concepts.items():
        own = attribute(atoms, block, label, positions=True, **options)[0, 0]
        change = whole - empty[block].to(whole)[label]
        parts[f"{block}.relevance"] = own.sum(dim=0)
        parts[f"{block}.gap"] = ((own.sum() - change) / change).abs()
        parts[f"{block}.where"] = _places(d.network, block, here.gathered(own[:, :-1]))
        parts[f"{block}.used"] = here.gathered(d.codes[block][0].any(dim=0).float()) > 0
    return parts


def _places(network: Network, block: str, values: Tensor) -> Tensor:
    """Values of positions (HW, K) as small maps (K, rows, columns)."""
    try:
        rows, columns = network.map_size(block)
    except ValueError:
        return values.new_zeros(values.shape[1], 0, 0, dtype=torch.float16)
    maps = values[network.placeless(block) :].T.unflatten(1, (rows, columns))
    return F.adaptive_avg_pool2d(maps, (min(rows, CELLS), min(columns, CELLS))).half()


@artifacts.cached("atlas-edges", ignore=("batch_size",))
def _fed(
    d: Decomposition, targets: Mapping[str, Sequence[int]], tolerance: float, batch_size: int
) -> dict[str, Tensor]:
    """GIG (T, k + 1) of one photograph's atoms for families of the next block, by block."""
    edges: dict[str, Tensor] = {}
    options: dict[str, Any] = {"rest": True, "tolerance": tolerance, "batch_size": batch_size}
    for source, later in zip(d.blocks, d.blocks[1:], strict=False):
        if targets[later]:
            mixed = dict(d.concepts) | {source: d.concepts[source].at(None)}
            # The rest is handed on: each copy would run the network for it again.
            own = replace(d, concepts=mixed, rests={source: d.residual(source)})
            edges[source] = attribute(own, source, (later, list(targets[later])), **options)[0]
    return edges


@artifacts.cached("atlas-stability")
def _stability(
    pfvs: PFVDataset, concepts: Concepts, splits: int, seed: int
) -> dict[str, Tensor]:  # fmt: skip
    x = pfvs.vectors(concepts.block).to(concepts.beta) - concepts.beta
    photographs = pfvs.photographs[pfvs.picture_ids(concepts.block)]
    return {"all": stability(x, concepts.assigned.cpu(), photographs, splits=splits, seed=seed)}


def comes_back(pfvs: PFVDataset, concepts: Concepts) -> list[float | None]:
    """:func:`stability` of a block's families, kept on disk; None of concepts that are no families.

    Examples
    --------
    >>> comes_back(None, Concepts(torch.eye(2), torch.zeros(2), torch.arange(2)))
    [None, None]
    """
    if concepts.level is None:
        return [None] * len(concepts)
    values = _stability(pfvs, concepts, SPLITS, 0)["all"].tolist()
    return [None if value != value else round(value, 2) for value in values]


def stability(
    x: Tensor, families: Tensor, photographs: Tensor, *, splits: int = SPLITS, seed: int = 0
) -> Tensor:
    """How much of each family (K,) a clustering of half the photographs finds again, 0 to 1.

    Clusterwise stability (Hennig, 2007): the largest Jaccard index of the family's PFVs in the half
    with any cluster of as many, averaged over both halves of some splits. Above 0.75 a family is
    called stable, above 0.6 a pattern, below it there is little to rely on. NaN of a family that no
    half holds.

    Parameters
    ----------
    x, families
        PFVs (N, C), centred, and the family (N,) of each.
    photographs
        (N,), the photograph of each.

    Examples
    --------
    Two directions that every photograph has come back whole.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.eye(4)[:2].repeat(20, 1) + 0.05 * torch.randn(40, 4, generator=generator)
    >>> stability(x, torch.arange(40) % 2, torch.arange(40) // 2).tolist()
    [1.0, 1.0]
    """
    count, unit = int(families.max()) + 1, F.normalize(x, dim=1)
    found, every = [], photographs.unique()
    for split in range(splits):
        order = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed + split))
        first = torch.isin(photographs, every[order[: len(every) // 2]])
        for half in (first, ~first):
            here = families[half]
            clusters = min(count, len(here))
            if not clusters:
                continue
            tree = BisectingSphericalKMeans(clusters, random_state=seed + split).fit(unit[half])
            both = torch.zeros(count, clusters)
            both.index_put_((here, torch.from_numpy(tree.labels_)), torch.tensor(1.0), True)
            rows, columns = both.sum(1, keepdim=True), both.sum(0, keepdim=True)
            likeness = (both / (rows + columns - both)).amax(dim=1)
            found.append(likeness.masked_fill(rows[:, 0] == 0, torch.nan))
    return torch.stack(found).nanmean(dim=0) if found else torch.full((count,), torch.nan)


def plane(concepts: Concepts) -> Tensor:
    """Places (K, 2), from 0 to 1, of concepts on a map: principal components of unit vectors.

    The classical scaling of their distances, so that what is near on the map shares a direction as
    far as two dimensions can say it.

    Examples
    --------
    >>> vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> plane(Concepts(vectors, torch.zeros(2), torch.arange(3))).shape
    torch.Size([3, 2])
    """
    unit = F.normalize(concepts.directions, dim=1).cpu().numpy()
    count = min(2, *unit.shape)
    places = torch.zeros(len(unit), 2)
    places[:, :count] = torch.from_numpy(PCA(count, random_state=0).fit_transform(unit))
    low, high = places.amin(dim=0), places.amax(dim=0)
    return (places - low) / (high - low).clamp(min=1e-9)


def proposed(classes: Mapping[str, float]) -> str:
    """A name by rule: the classes that take half of what a family brings, if three are enough.

    Parameters
    ----------
    classes
        Mean relevance for each class, by name.

    Examples
    --------
    >>> proposed({"junco": 3.0, "owl": 1.0, "crane": -5.0}), proposed({"owl": -1.0})
    ('junco', '')
    >>> proposed(dict.fromkeys("abcdefgh", 1.0))
    'many classes'
    """
    positive = sorted(((v, name) for name, v in classes.items() if v > 0), reverse=True)
    half, taken = sum(value for value, _ in positive) / 2, 0.0
    for n, (value, _) in enumerate(positive[:3]):
        taken += value
        if taken >= half:
            return ", ".join(name for _, name in positive[: n + 1])
    return "many classes" if positive else ""

"""Picture sheets of an atlas: crops of the PFVs that its pages show, many in one file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..concepts import Concepts
from ..data import artifacts
from ..families import ranks
from ..network import Network
from ..pfv import PFVDataset
from .examples import examples
from .figures import portrait

CROP, SIDE = 72, 16
"""Pixels of a crop's side, and crops in a row and in a column of a sheet."""

NEAREST, OTHERS = 6, 3
"""Members of a family that its page shows: the nearest, and as many from the middle and by lot."""


class Chosen(NamedTuple):
    """The PFVs of a block that pages show, by their place on the sheets; see :func:`choose`.

    Examples
    --------
    >>> shown = Chosen([40, 7], {0: {"nearest": [1], "median": [0], "random": [0]}}, {0: 1})
    >>> [shown.rows[n] for n in shown.families[0]["nearest"]]  # PFV 7, the second crop
    [7]
    """

    rows: list[int]
    families: dict[int, dict[str, list[int]]]
    atoms: dict[int, int]


def choose(pfvs: PFVDataset, here: Concepts, use: Tensor) -> Chosen:
    """Nearest, median and random members of each family, and the nearest PFV of each atom.

    The nearest are of different photographs as far as there are some. What pages show first comes
    first: the nearest members, of the most used families before others.

    Parameters
    ----------
    use
        (k,), how much each atom is used.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]])
    >>> pfvs = SimpleNamespace(
    ...     vectors=lambda block: x, picture_ids=lambda block: torch.tensor([0, 1, 1]),
    ...     photographs=torch.tensor([0, 1]),
    ... )
    >>> concepts = Concepts(torch.eye(2), torch.zeros(2), torch.tensor([0, 0, 1]))
    >>> shown = choose(pfvs, concepts, torch.tensor([1.0, 5.0]))
    >>> shown.rows, shown.families[0]["nearest"], shown.atoms
    ([2, 0, 1], [1, 2], {0: 1, 1: 0})
    """
    generator = torch.Generator().manual_seed(0)
    photographs = pfvs.photographs[pfvs.picture_ids(here.block)]
    unit = F.normalize(pfvs.vectors(here.block).to(here.beta) - here.beta, dim=1)
    rows: dict[int, dict[str, list[int]]] = {}
    for family, members in _by_label(unit, here.directions, here.assigned):
        apart = members[ranks(photographs[members]).argsort(stable=True)]
        middle = max(0, (len(members) - OTHERS) // 2)
        lot = members[torch.randperm(len(members), generator=generator)[:OTHERS]]
        rows[family] = {
            "nearest": apart[:NEAREST].tolist(),
            "median": members[middle : middle + OTHERS].tolist(),
            "random": lot.tolist(),
        }
    of_atoms = _by_label(unit, here.vectors, here.labels)
    first = {atom: int(members[0]) for atom, members in of_atoms}
    order = here.gathered(use.cpu()).argsort(descending=True, stable=True).tolist()
    order = [family for family in order if family in rows]
    wanted = [rows[f]["nearest"][n : n + 1] for n in range(NEAREST) for f in order]
    wanted += [rows[f][kind] for kind in ("median", "random") for f in order]
    every = list(dict.fromkeys(sum([*wanted, [*first.values()]], [])))
    at = {row: n for n, row in enumerate(every)}
    crops = {
        f: {kind: [at[row] for row in of] for kind, of in kinds.items()}
        for f, kinds in rows.items()
    }
    return Chosen(every, crops, {atom: at[row] for atom, row in first.items()})


def _by_label(unit: Tensor, vectors: Tensor, labels: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Each label that occurs with the PFVs that have it, the nearest to its vector first."""
    own = F.normalize(vectors, dim=1)
    # A label at a time: vectors of all PFVs would be as many again as there are PFVs.
    for label, members in zip(*_groups(labels.cpu()), strict=True):
        cosine = unit[members.to(unit.device)] @ own[label]
        yield label, members[cosine.argsort(descending=True, stable=True).cpu()]


def _groups(labels: Tensor) -> tuple[list[int], Sequence[Tensor]]:
    present, counts = labels.unique(return_counts=True)
    return present.tolist(), labels.argsort(stable=True).split(counts.tolist())


def draw(place: Path, slug: str, pfvs: PFVDataset, block: str, rows: list[int], looks: int) -> None:
    """Write the sheets of some PFVs: so many crops in colour where the PFV looks, the others plain.

    Examples
    --------
    A dataset of two PFVs of one picture, written by hand.

    >>> import os
    >>> from tempfile import TemporaryDirectory
    >>> from unittest.mock import patch
    >>> from safetensors.torch import save_file
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import load_pictures
    >>> network = Network(resnet18(num_classes=5), device="cpu")
    >>> pictures, block = load_pictures("sample").subset([0]), "layer1.0"
    >>> columns = {f"{block}.picture_ids": torch.tensor([0, 0])}
    >>> columns[f"{block}.positions"] = torch.tensor([[10, 10], [28, 40]])
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     save_file(columns, f"{here}/shard-000000.safetensors")
    ...     pfvs = PFVDataset(Path(here), "", (block,), network, pictures, {})
    ...     draw(Path(here), "layer1", pfvs, block, [0, 1], looks=1)
    ...     Image.open(f"{here}/layer1-0.webp").size
    (1152, 1152)
    """
    seen, batch = max(looks, 1), 16
    parts = [rows[:seen][n : n + batch] for n in range(0, min(seen, len(rows)), batch)]
    made = [_portraits(pfvs, block, part) for part in parts]
    edge = int(torch.cat([part["edges"] for part in made]).median())

    def crops() -> Iterator[Image.Image]:
        for part in made:
            yield from map(Image.fromarray, part["crops"].numpy())
        yield from _plain(pfvs, block, rows[seen:], edge)

    sheets(place, slug, crops(), CROP, SIDE)


@artifacts.cached("atlas-looks")
def _portraits(pfvs: PFVDataset, block: str, rows: list[int]) -> dict[str, Tensor]:
    shots = examples(pfvs, block, rows)
    crops = [torch.from_numpy(np.array(portrait(shot, CROP))) for shot in shots]
    return {"crops": torch.stack(crops), "edges": torch.tensor([len(s.crop) for s in shots])}


def _plain(pfvs: PFVDataset, block: str, rows: list[int], edge: int) -> Iterator[Image.Image]:
    """Crops around PFVs, all of the size that was typical where PFVs' looks were asked for."""
    ids, positions = pfvs.picture_ids(block).tolist(), pfvs.positions(block)
    images: dict[int, Image.Image] = {}
    for row in rows:
        i = ids[row]
        image = images.setdefault(i, images.get(i) or pfvs.pictures.image(i))
        across, down = _centre(pfvs.network, block, positions[row])
        side = min(edge, *image.size)
        left = round(min(max(across * image.width - side / 2, 0), image.width - side))
        top = round(min(max(down * image.height - side / 2, 0), image.height - side))
        yield image.crop((left, top, left + side, top + side)).resize((CROP, CROP))


def _centre(network: Network, block: str, position: Tensor) -> tuple[float, float]:
    """Across and down, 0 to 1, of a position; the middle where it has no place."""
    try:
        rows, columns = network.map_size(block)
    except ValueError:
        return 0.5, 0.5
    place = position.tolist()
    if len(place) == 1:  # a token, behind those without a place
        own = place[0] - network.placeless(block)
        if own < 0:
            return 0.5, 0.5
        place = divmod(own, columns)
    return (place[1] + 0.5) / columns, (place[0] + 0.5) / rows


def sheets(place: Path, slug: str, crops: Iterator[Image.Image], crop: int, side: int) -> None:
    """Write crops, one after the other, as squares of files ``SLUG-0.webp`` and so on.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> red = (Image.new("RGB", (8, 8), "red") for _ in range(5))
    >>> with TemporaryDirectory() as here:
    ...     sheets(Path(here), "red", red, 8, 2)
    ...     sorted(path.name for path in Path(here).iterdir())
    ['red-0.webp', 'red-1.webp']
    """
    blank = Image.new("RGB", (crop * side, crop * side))
    sheet, n = blank.copy(), -1

    def save() -> None:
        path = place / f"{slug}-{n // side**2}.webp"
        artifacts.write_atomically(path, lambda file: sheet.save(file, "WEBP", quality=70))

    for n, image in enumerate(crops):
        row, column = divmod(n % side**2, side)
        sheet.paste(image, (column * crop, row * crop))
        if (n + 1) % side**2 == 0:
            save()
            sheet = blank.copy()
    if (n + 1) % side**2:
        save()

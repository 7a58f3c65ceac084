"""An atlas of all concepts: static pages to browse, to search and to zoom, which need no server.

``make atlas`` runs ``python -m gig_helpers.report FOLDER`` with the profile's pictures.
"""

import html
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from tqdm import tqdm

from ..concepts import Concepts
from ..data import artifacts
from ..pfv import PFVDataset
from .atlas_data import Gathered, comes_back, gather, plane, proposed
from .atlas_sheets import SIDE, Chosen, choose, draw, sheets
from .statistics import interval

PHOTOGRAPH, ALBUM = 160, 8
"""Pixels of a photograph's side, and photographs in a row and in a column of a sheet."""

LOOKS = 2
"""Crops, for each photograph, that are in colour where the PFV looks: each costs its iERF."""

MOST = 24
"""Families of a class and block that have an interval and edges."""

FEEDERS = 8
"""Families that feed a family, as its page lists them."""

PLACES = 3
"""Photographs that show where a family is."""

Families: TypeAlias = dict[int, list[Any]]

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"

ASSETS = (
    "atlas.css", "atlas.js", "atlas_index.js", "atlas_block.js", "atlas_class.js", "atlas_test.js",
)  # fmt: skip

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><link rel="stylesheet" href="assets/atlas.css"></head>
<body data-block="{block}"><header><nav id="nav" aria-label="Pages of the atlas"></nav></header>
<main id="main"><h1>{title}</h1><noscript>The atlas is drawn by JavaScript.</noscript></main>
<script src="data/index.js"></script><script src="assets/atlas.js"></script>
{scripts}</body></html>
"""


def atlas(
    pfvs: PFVDataset, concepts: Mapping[str, Concepts], folder: str | Path, *,
    names: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write an atlas of a data set's concepts: a folder of pages that opens from a file.

    A page per block with all its families and atoms, one per class with its graph over the data
    set and one per photograph with its own, and a test of what people see in families. See
    :mod:`gig_helpers.report.atlas_data` for what is computed; what a run that was killed has done
    is found again.

    Parameters
    ----------
    pfvs, concepts
        The data set with its network and pictures, and what :func:`.fit_concepts` made of it.
    folder
        Made where it is missing; files of an earlier atlas are replaced.
    names
        The reader's names, ``{"layer3.5/12": "bird chest"}``, such as the pages export.

    Returns
    -------
    Path
        ``index.html``

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
    >>> from gig_helpers import Network, Profile, fit_concepts, load_pictures, sample
    >>> network = Network(resnet18(), device="cpu")
    >>> pictures, profile = load_pictures("sample", network), Profile(blocks=("layer4.1",))
    >>> with TemporaryDirectory() as here, patch.dict(os.environ, GIG_ARTIFACTS=here):
    ...     pfvs = sample(network, pictures.subset([0]), profile)
    ...     page = atlas(pfvs, fit_concepts(pfvs, profile), Path(here) / "atlas")
    ...     page.name, sorted(path.name for path in page.parent.glob("*.html"))
    ('index.html', ['block-layer4.1.html', 'class.html', 'index.html', 'test.html'])
    """
    found, place = gather(pfvs, concepts), Path(folder).expanduser()
    blocks = {block: concepts[block].to("cpu") for block in found.relevance}
    classes = pfvs.network.classes
    about: dict[str, Any] = {
        "network": pfvs.network.name,
        "pictures": repr(pfvs.pictures),
        "key": artifacts.key("atlas", artifacts.fingerprint([pfvs, blocks])),
        "names": dict(names or {}),
        "photographs": _photographs(pfvs, found, place),
        "classes": [[c, classes[c], found.of_class(c).tolist()] for c in found.targets],
        "album": {"slug": "photographs", "side": ALBUM},
        "blocks": [],
    }
    data, means = {}, {block: _means(here, found) for block, here in blocks.items()}
    for block, here in tqdm(blocks.items(), desc="atlas: pictures", unit="block"):
        chosen = choose(pfvs, here, found.relevance[block][:, :-1].abs().sum(dim=0))
        looks = LOOKS * len(found.pictures) // len(blocks)
        draw(place / "sheets", _slug(block), pfvs, block, chosen.rows, looks)
        data[block] = _block(pfvs, here, found, means[block], chosen)
    _add_edges(data, blocks, found)
    for block, here in blocks.items():
        slug, families = _slug(block), data[block]["families"]
        _give(place, slug, data[block])
        _page(place, slug, f"Concepts of {block}", ["assets/atlas_block.js"], block)
        about["blocks"].append({
            "name": block, "slug": slug, "side": SIDE, "families": len(here),
            "atoms": len(here.vectors), "pfvs": len(here.labels),
            "tree": [] if here.parents is None else here.parents.tolist(),
            "faces": [family["crops"]["nearest"] for family in families],
            "suggested": [family["suggested"] for family in families],
            "photographs": [family["photographs"] for family in families],
        })  # fmt: skip
    for label in found.targets:
        rows = found.of_class(label).tolist()
        families = {block: table[label] for block, table in means.items()}
        _give(place, f"class-{label}", _graph(blocks, found, rows, families))
    for n in range(len(found.pictures)):
        _give(place, f"photograph-{n}", _graph(blocks, found, [n], _own(blocks, found, n)))
    _give(place, "index", about)
    _page(place, "index", "Atlas of concepts", ["assets/atlas_index.js"])
    _page(place, "class", "What a class rests on", ["assets/atlas_class.js"])
    _page(place, "test", "Which does not belong?", ["assets/atlas_test.js"])
    (place / "assets").mkdir(exist_ok=True)
    for asset in ASSETS:
        shutil.copy(Path(__file__).with_name(asset), place / "assets")
    return place / "index.html"


def _slug(block: str) -> str:
    return "block-" + re.sub(r"[^\w.-]", "_", block)


def _give(place: Path, name: str, data: Any) -> None:
    """Data as a script, since a page that is a file may load no other file in another way."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    text = f"(window.atlasData ??= {{}})[{json.dumps(name)}] = {text};\n"
    path = place / "data" / f"{name}.js"
    artifacts.write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _page(
    place: Path, name: str, title: str, scripts: Sequence[str], block: str = ""
) -> None:  # fmt: skip
    tags = "".join(f'<script src="{html.escape(script)}"></script>\n' for script in scripts)
    text = _PAGE.format(title=html.escape(title), scripts=tags, block=html.escape(block))
    path = place / f"{name}.html"
    artifacts.write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _rounded(value: float) -> float:
    """Four digits, which is more than the quadrature knows."""
    return float(f"{value:.4g}")


def _photographs(pfvs: PFVDataset, found: Gathered, place: Path) -> list[list[Any]]:
    """Name, class and what the network says of each photograph; their sheets are written."""
    small = (pfvs.pictures.image(i).resize((PHOTOGRAPH, PHOTOGRAPH)) for i in found.pictures)
    sheets(place / "sheets", "photographs", small, PHOTOGRAPH, ALBUM)
    said = pfvs.predictions().tolist()
    return [
        [Path(pfvs.pictures.paths[i]).stem, label, pfvs.network.classes[said[i]]]
        for i, label in zip(found.pictures, found.classes.tolist(), strict=True)
    ]


def _means(here: Concepts, found: Gathered) -> dict[int, Families]:
    """Of each class the families that its photographs use: mean relevance, interval, how many.

    The interval stands only where there are two photographs, and of the strongest families.
    """
    table = {}
    for label in found.targets:
        rows = found.of_class(label)
        values = here.gathered(found.relevance[here.block][rows, :-1])
        used, mean = found.used[here.block][rows].sum(dim=0).tolist(), values.mean(dim=0)
        order = mean.abs().argsort(descending=True).tolist()
        table[label] = {
            f: [_rounded(float(mean[f])), None, None, used[f]] for f in order if used[f]
        }
        for f in [*table[label]][:MOST] if len(rows) > 1 else []:
            between = interval(values[:, f])
            table[label][f][1:3] = _rounded(between.low), _rounded(between.high)
    return table


def _block(
    pfvs: PFVDataset, here: Concepts, found: Gathered, means: Mapping[int, Families],
    chosen: Chosen,
) -> dict[str, Any]:  # fmt: skip
    """What a block's page says of its families and atoms, but for edges."""
    block, names = here.block, pfvs.network.classes
    ids = pfvs.picture_ids(block)
    photographs, labels = pfvs.photographs[ids], here.labels.cpu()
    pairs = torch.stack([here.assigned.cpu(), photographs]).unique(dim=1)[0]
    photographs_of = torch.bincount(pairs, minlength=len(here)).tolist()
    sizes = torch.bincount(here.assigned, minlength=len(here)).tolist()
    entropy = here.class_entropy(pfvs.classes()[ids].to(here.labels.device)).tolist()
    places, back = plane(here).tolist(), comes_back(pfvs, here)
    relevance = here.gathered(found.relevance[block][:, :-1])
    used = found.used[block]
    families = []
    for f in range(len(here)):
        own = {label: table[f] for label, table in means.items() if f in table}
        order = sorted(own, key=lambda label: -own[label][0])
        families.append({
            "pfvs": sizes[f], "photographs": photographs_of[f], "uses": int(used[:, f].sum()),
            "entropy": None if math.isnan(entropy[f]) else round(entropy[f], 2), "back": back[f],
            "place": [round(at, 3) for at in places[f]],
            "suggested": proposed({names[c]: own[c][0] for c in order}),
            "crops": chosen.families.get(f, {"nearest": [], "median": [], "random": []}),
            "classes": [[c, *own[c]] for c in order],
            "where": _where(relevance[:, f], used[:, f], found.where[block][:, f]),
            "from": {}, "to": {},
        })  # fmt: skip
    counts = torch.bincount(labels, minlength=len(here.vectors)).tolist()
    atoms = [
        [family, counts[atom], chosen.atoms.get(atom, -1)]
        for atom, family in enumerate(here.family.tolist())
    ]
    album = {int(pfvs.photographs[i]): n for n, i in enumerate(found.pictures)}
    origin = [album[n] for n in photographs[chosen.rows].tolist()]
    return {"families": families, "atoms": atoms, "crops": origin}


def _where(relevance: Tensor, used: Tensor, maps: Tensor) -> list[list[Any]]:
    """The photographs that a family brings most to, and where: 18 is 0, 35 the most there is."""
    order = relevance.masked_fill(~used, -torch.inf).argsort(descending=True)[:PLACES].tolist()
    shown = []
    for n in order:
        if used[n]:
            scaled = maps[n].float() / maps[n].float().abs().max().clamp(min=1e-12)
            cells = (17 * scaled).round().int() + 18
            rows = ["".join(_DIGITS[cell] for cell in row) for row in cells.tolist()]
            shown.append([n, _rounded(float(relevance[n])), rows])
    return shown


def _add_edges(
    data: Mapping[str, Mapping[str, Any]], concepts: Mapping[str, Concepts], found: Gathered
) -> None:
    """What feeds each family and what it feeds, for each class: mean GIG, the strongest first."""
    for label in found.targets:
        fed = found.mean_fed(found.of_class(label).tolist())
        for (source, values), later in zip(fed.items(), _after(found, fed), strict=True):
            brought = concepts[source].gathered(values[:, :-1])
            for target, row in zip(found.targets[label][later], brought, strict=True):
                order = row.abs().argsort(descending=True)[:MOST].tolist()
                edges = [[f, _rounded(float(row[f]))] for f in order if row[f]]
                data[later]["families"][target]["from"][label] = edges[:FEEDERS]
                for f, value in edges:
                    to = data[source]["families"][f]["to"]
                    to.setdefault(label, []).append([target, value])


def _after(found: Gathered, blocks: Iterable[str]) -> list[str]:
    order = list(found.relevance)
    return [order[order.index(block) + 1] for block in blocks]


def _own(concepts: Mapping[str, Concepts], found: Gathered, n: int) -> dict[str, Families]:
    """As :func:`_means` of one photograph, which has no interval."""
    table = {}
    for block, here in concepts.items():
        values = here.gathered(found.relevance[block][n, :-1]).tolist()
        used = found.used[block][n].nonzero()[:, 0].tolist()
        table[block] = {f: [_rounded(values[f]), None, None, 1] for f in used}
    return table


def _graph(
    concepts: Mapping[str, Concepts], found: Gathered, rows: Sequence[int],
    means: Mapping[str, Families],
) -> dict[str, Any]:  # fmt: skip
    """The graph of photographs of one class: values of every atom, of which families are sums."""
    fed, blocks = found.mean_fed(rows), {}
    for block in concepts:
        parts = [found.relevance[block][rows].mean(dim=0)[None]]
        values = torch.cat([*parts, fed[block]] if block in fed else parts).T
        some = values[:-1].any(dim=1).nonzero()[:, 0].tolist()
        families = sorted(means[block].items(), key=lambda item: -item[1][0])
        blocks[block] = {
            "families": [[f, *about] for f, about in families if about[0] > 0][:MOST],
            "targets": found.targets[int(found.classes[rows[0]])][block],
            "atoms": [[atom, *map(_rounded, values[atom].tolist())] for atom in some],
            "rest": [*map(_rounded, values[-1].tolist())],
            "gap": _rounded(float(found.gaps[block][rows].mean())),
        }
    return {"photographs": [*rows], "blocks": blocks}

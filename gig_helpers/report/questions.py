"""Questions to a data set: what a class rests on, what misled the network, what two have in common.

Not in the paper, which shows graphs; these are tables.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from ..codes import Decomposition, decompose
from ..concepts import Concepts
from ..importance import attribute
from ..network import Network
from ..pfv import PFVDataset


def class_concepts(
    pfvs: PFVDataset, concepts: Mapping[str, Concepts], label: int | str, *, most: int = 20,
    tolerance: float = 0.05,
) -> pd.DataFrame:  # fmt: skip
    """What a class rests on: the concepts of its photographs by relevance (eq. 7), strongest first.

    Parameters
    ----------
    label
        The class, by name or number.
    most
        Photographs at most, one view of each: those of the class by their label; of photographs
        without a label, those that the network says it of.
    tolerance
        Of :func:`.attribute`.

    Returns
    -------
    pandas.DataFrame
        Indexed by block and concept, those in use alone: mean ``relevance`` (logits) over
        photographs with its 95 % interval (Student's) ``low`` to ``high``, which one photograph
        does not have, and ``in_use``, the share of photographs.

    Raises
    ------
    ValueError
        If there is no such class, or no photograph of it.

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
    ...     pfvs = sample(network, pictures.subset([0]), profile)  # of no class of this network
    ...     table = class_concepts(pfvs, fit_concepts(pfvs, profile), int(pfvs.predictions()[0]))
    >>> list(table), bool(table["relevance"].is_monotonic_decreasing)
    (['relevance', 'low', 'high', 'in_use'], True)
    """
    c = class_number(pfvs.network, label)
    of_class = (pfvs.classes() == c).nonzero()[:, 0].tolist()
    views = {int(pfvs.photographs[i]): i for i in reversed(of_class)}
    if not views:
        raise ValueError(f"no photograph of {pfvs.network.classes[c]!r} in {pfvs.pictures.name}")
    d = decompose(pfvs.network, pfvs.pictures[sorted(views.values())[:most]], concepts)
    tables = {block: _relevance(d, block, c, tolerance) for block in d.blocks}
    table = pd.concat(tables, names=["block", "concept"])
    return table.sort_values("relevance", ascending=False)


def _relevance(d: Decomposition, block: str, c: int, tolerance: float) -> pd.DataFrame:
    values = attribute(d, block, c, tolerance=tolerance)[:, 0].cpu().double().numpy()
    mean = values.mean(axis=0)
    reach = (
        stats.sem(values) * stats.t.ppf(0.975, len(d) - 1) if len(d) > 1 else 0 * mean + torch.nan
    )
    table = pd.DataFrame({"relevance": mean, "low": mean - reach, "high": mean + reach})
    table["in_use"] = _in_use(d, block).double().mean(dim=0).cpu().numpy()
    return table[table["in_use"] > 0]


def _in_use(d: Decomposition, block: str) -> Tensor:
    """Which concepts (N, K) a picture uses anywhere."""
    return d.concepts[block].gathered(d.codes[block].any(dim=1).float()) > 0


def contrast(
    d: Decomposition, block: str, said: int | str, rather_than: int | str, *,
    tolerance: float = 0.02,
) -> pd.DataFrame:  # fmt: skip
    """Which concepts a (wrong) prediction used: relevance (eq. 7) for it and for another class.

    Parameters
    ----------
    d
        One picture, or several whose mean counts.
    said, rather_than
        Two classes, by name or number.

    Returns
    -------
    pandas.DataFrame
        Indexed by concept, those in use alone: relevance for either class, and ``pull``, the first
        less the second, largest first. The pulls sum to the change of the difference of the two
        logits from no concepts to all.

    Raises
    ------
    ValueError
        If there is no such class.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, block = Network(resnet18(), device="cpu"), "layer4.1"
    >>> concepts = Concepts(torch.rand(3, 512), network.bn_shift(block), torch.arange(3), block)
    >>> codes = torch.tensor([[[1.0, 0.0, 0.5]] * 4])
    >>> d = Decomposition(network, torch.zeros(1, 3, 64, 64), {block: concepts}, {block: codes})
    >>> table = contrast(d, block, 3, 7)
    >>> list(table), sorted(table.index)
    (['class 3', 'class 7', 'pull'], [0, 2])
    """
    classes = [class_number(d.network, label) for label in (said, rather_than)]
    names = [d.network.classes[c] for c in classes]
    values = attribute(d, block, classes, tolerance=tolerance).mean(dim=0).cpu()
    table = pd.DataFrame(values.T.numpy(), columns=names, index=pd.RangeIndex(values.shape[1]))
    table["pull"] = (values[0] - values[1]).numpy()
    used = _in_use(d, block).any(dim=0).cpu().numpy()
    return table[used].rename_axis("concept").sort_values("pull", ascending=False)


def suspects(
    d: Decomposition, block: str, labels: Sequence[int], *, tolerance: float = 0.05
) -> pd.DataFrame:  # fmt: skip
    """Which concepts mislead the network again and again: a search for shortcuts (eq. 7).

    A concept that brings wrong classes to photographs of many classes is none of theirs. What each
    pulls from the true class to the one that the network says is a share of all that pulls there,
    so that no photograph counts more than another, and the shares are averaged over true classes,
    so that no class does. Nobody has to know what to look for. A photograph in which no concept
    pulls has no shares.

    Parameters
    ----------
    d
        Photographs with a label, of which those count that the network gets wrong.
    labels
        True class (N,) of each.

    Returns
    -------
    pandas.DataFrame
        Indexed by concept, the first suspect first: ``share`` of the pull, mean over true classes;
        ``pull``, mean over photographs (logits); of how many ``photographs`` and true ``classes``
        it is the strongest.

    Raises
    ------
    ValueError
        If there is not one label per picture, or the network gets none wrong.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, block = Network(resnet18(), device="cpu"), "layer4.1"
    >>> vectors = torch.cat([torch.eye(2, 512), -torch.eye(2, 512)])  # a half of them pulls
    >>> concepts = Concepts(vectors, network.bn_shift(block), torch.arange(4), block)
    >>> codes = {block: torch.rand(2, 4, 4)}
    >>> d = Decomposition(network, torch.zeros(2, 3, 64, 64), {block: concepts}, codes)
    >>> table = suspects(d, block, [998, 999])
    >>> list(table), round(float(table["share"].sum()), 3), int(table["photographs"].sum())
    (['share', 'pull', 'photographs', 'classes'], 1.0, 2)
    """
    if len(labels) != len(d):
        raise ValueError(f"{len(labels)} labels for {len(d)} pictures")
    said = d.logits().argmax(dim=1).tolist()
    wrong = [i for i, label in enumerate(labels) if label != said[i]]
    if not wrong:
        raise ValueError(f"the network gets none of {len(d)} pictures wrong")
    both = [[said[i], labels[i]] for i in wrong]
    values = attribute(d[wrong], block, both, tolerance=tolerance).double().cpu()
    pull = values[:, 0] - values[:, 1]
    shares = pd.DataFrame((pull.clamp(min=0) / pull.clamp(min=0).sum(dim=1)[:, None]).numpy())
    of_class = np.array([label for _, label in both])
    some = (pull > 0).any(dim=1).numpy()
    first = pd.crosstab(pull.argmax(dim=1).numpy()[some], of_class[some])
    first = first.reindex(shares.columns, fill_value=0)
    table = {
        "share": shares.groupby(of_class).mean().mean(),
        "pull": pull.mean(dim=0).numpy(),
        "photographs": first.sum(axis=1),
        "classes": (first > 0).sum(axis=1),
    }
    found = pd.DataFrame(table).rename_axis("concept")
    return found.sort_values("share", ascending=False, kind="stable")


def matches(d: Decomposition, block: str, other: Decomposition, other_block: str) -> pd.DataFrame:
    """What two networks have in common: for each concept, the other's that is where it is.

    Parameters
    ----------
    d, other
        The same pictures, three or more, written as concepts of either network.
    block, other_block
        The blocks that are compared.

    Returns
    -------
    pandas.DataFrame
        Indexed by the concepts of ``block`` whose presence ``Σ_p |u_pq| ‖v_q‖`` varies from picture
        to picture: the concept of ``other_block`` (``match``) whose presence correlates with it
        most (Pearson's ``correlation``), most alike first.

    Raises
    ------
    ValueError
        If there are not as many pictures, or fewer than three, or all look alike to ``other``.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, block = Network(resnet18(), device="cpu"), "layer4.1"
    >>> concepts = Concepts(torch.eye(512)[:2], network.bn_shift(block), torch.arange(2), block)
    >>> codes = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[3.0, 1.0]]])
    >>> d = Decomposition(network, torch.zeros(3, 3, 64, 64), {block: concepts}, {block: codes})
    >>> matches(d, block, d, block)["match"].tolist()  # each is its own
    [0, 1]
    """
    if len(d) != len(other) or len(d) < 3:
        raise ValueError(
            f"{len(d)} and {len(other)} pictures: give the same ones to both, three or more"
        )
    (mine, numbers), (theirs, others) = _presence(d, block), _presence(other, other_block)
    if not len(others):
        raise ValueError(f"no concept of {other_block} is in one picture more than in another")
    best = (mine.T @ theirs).max(dim=1)
    index = pd.Index(numbers.tolist(), name="concept")
    table = {"match": others[best.indices].tolist(), "correlation": best.values.tolist()}
    return pd.DataFrame(table, index).sort_values("correlation", ascending=False, kind="stable")


def _presence(d: Decomposition, block: str) -> tuple[Tensor, Tensor]:
    """Presences (N, m) that vary, centred and of unit length, and which concepts' they are (m,)."""
    here = d.concepts[block]
    mass = here.gathered(d.codes[block].abs().sum(dim=1).double() * here.vectors.norm(dim=1))
    centred = (mass - mass.mean(dim=0)).cpu()
    norms = centred.norm(dim=0)
    varies = (norms > 1e-9 * mass.abs().amax().cpu()).nonzero()[:, 0]
    return centred[:, varies] / norms[varies], varies


def class_number(network: Network, label: int | str | None) -> int:
    """A class's number, by its name or number; not in the paper.

    Raises
    ------
    ValueError
        If the network has no such class; the message names some that are spelt alike. Or if there
        is none, as of a picture without a label.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> class_number(SimpleNamespace(classes=("junco", "brambling"), n_classes=2), "brambling")
    1
    """
    if isinstance(label, str):
        if label not in network.classes:
            from difflib import get_close_matches

            near = get_close_matches(label, network.classes) or network.classes[:3]
            raise ValueError(f"the network has no class {label!r}; it has {', '.join(near)}, …")
        return network.classes.index(label)
    if label is None:
        raise ValueError("no class is named: the picture has no label, so name one")
    if not 0 <= label < network.n_classes:
        raise ValueError(f"class {label} leaves 0 … {network.n_classes - 1}")
    return int(label)

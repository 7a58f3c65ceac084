"""How many concepts do the pictures support? The level that other photographs give again.

Not in the paper, whose k leaves two or three PFVs a cluster in the upper blocks, which other
photographs cannot give again. Bisecting builds a tree; its leaves are the *atoms* that
reconstruct, a cut of it higher up are the *families* that one can speak of.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from scipy import stats
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor
from torch.nn import functional as F

from .clustering import BisectingSphericalKMeans, cut, nearest_centre

LEVELS = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of families that are tried."""

EXCESS = 0.05
"""By how much two halves must agree more than one of them with PFVs drawn blindly."""

PHOTOGRAPHS, ALONE = (10, 5), 0.1
"""Photographs of the median family, at least, in large and in small sets; and the share of families
of one photograph, at most."""

SMALL = 100
"""Photographs below which halves are too small to compare: there the counts alone decide."""


def agreement(
    x: Tensor, beta: Tensor, photographs: Tensor, classes: Tensor, *,
    levels: Sequence[int] = LEVELS, splits: int = 5, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Do other photographs give the same families again? Excess agreement (splits, levels).

    The photographs are dealt into thirds A, B and C, each class by itself. A and B are clustered,
    and C's PFVs, two of a photograph at most, sorted into the families of either. What counts is
    the adjusted mutual information of the two sortings (Vinh et al., 2010), less that of A's with
    one by as many PFVs of B drawn blindly.

    Parameters
    ----------
    x, beta
        PFVs (N, C), not centred, and β (C,).
    photographs, classes
        (N,), the photograph of each PFV and its class.
    levels
        Numbers of families; those that a third is too small for get NaN.

    Examples
    --------
    Three directions, each in every photograph: two families per direction have nothing to agree on.

    >>> generator = torch.Generator().manual_seed(0)
    >>> directions = torch.eye(8)[:3].repeat(40, 1)
    >>> x = directions + 0.05 * torch.randn(120, 8, generator=generator)
    >>> photographs = torch.arange(40).repeat_interleave(3)
    >>> excess = agreement(x, torch.zeros(8), photographs, photographs % 5, levels=[3, 12])
    >>> excess.shape, bool(excess[:, 0].mean() > excess[:, 1].mean())
    (torch.Size([5, 2]), True)
    """
    unit = F.normalize(x - beta, dim=1)
    results = torch.full((splits, len(levels)), torch.nan, dtype=torch.float64)
    for split in range(splits):
        generator = torch.Generator().manual_seed(seed + split)
        third = thirds(photographs, classes, generator)
        one, other, judges = (unit[third == part] for part in range(3))
        judges = judges[ranks(photographs[third == 2]) < 2]
        possible = [level for level in levels if 2 * level <= min(len(one), len(other))]
        if not possible or not len(judges):
            continue
        # Thirds stand in one order of classes: one seed for both would draw the same places.
        trees = [
            BisectingSphericalKMeans(max(possible), random_state=state).fit(part)
            for part, state in ((one, seed + split), (other, seed + split + splits))
        ]
        for place, level in enumerate(possible):
            centres = [
                _centres(part, torch.from_numpy(tree.labels_at(level)).to(part.device))
                for part, tree in zip((one, other), trees, strict=True)
            ]
            blind = torch.randperm(len(other), generator=generator)[:level].to(other.device)
            by_one, by_other, by_chance = (
                nearest_centre(judges, directions).cpu() for directions in (*centres, other[blind])
            )
            found = adjusted_mutual_info_score(by_one, by_other)
            results[split, place] = found - adjusted_mutual_info_score(by_one, by_chance)
    return results


def thirds(photographs: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Which third (N,) each PFV's photograph is dealt to: each class by itself, in random order.

    Examples
    --------
    >>> photographs = torch.arange(6).repeat_interleave(2)
    >>> third = thirds(photographs, photographs % 2, torch.Generator().manual_seed(0))
    >>> torch.bincount(third).tolist()  # of either class one photograph to each
    [4, 4, 4]
    """
    of_photograph = dict(zip(photographs.tolist(), classes.tolist(), strict=True))
    shuffled = list(of_photograph)
    order = torch.randperm(len(shuffled), generator=generator).tolist()
    dealt: dict[int, int] = {}
    counts: dict[int, int] = {}
    for photograph in (shuffled[n] for n in order):
        label = of_photograph[photograph]
        # A class begins at a third of its own: many have fewer photographs than there are thirds.
        begin = counts.setdefault(label, int(torch.randint(3, (1,), generator=generator)))
        dealt[photograph], counts[label] = begin % 3, begin + 1
    return torch.tensor([dealt[photograph] for photograph in photographs.tolist()])


def ranks(photographs: Tensor) -> Tensor:
    """How many of the same photograph stand before each (N,).

    Examples
    --------
    >>> ranks(torch.tensor([5, 5, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    seen: dict[int, int] = {}
    before = []
    for photograph in photographs.tolist():
        before.append(seen.setdefault(photograph, 0))
        seen[photograph] += 1
    return torch.tensor(before)


def _centres(unit: Tensor, labels: Tensor) -> Tensor:
    sums = unit.new_zeros(int(labels.max()) + 1, unit.shape[1])
    return sums.index_add_(0, labels, unit)


def support(
    labels: Tensor, parents: Tensor, photographs: Tensor, excess: Tensor,
    levels: Sequence[int] = LEVELS,
) -> pd.DataFrame:  # fmt: skip
    """What speaks for each number of families: agreement, PFVs and photographs of a family.

    Parameters
    ----------
    labels, parents
        The atom (N,) of each PFV and the tree (k,); see
        :class:`gig_helpers.clustering.BisectingSphericalKMeans`.
    photographs
        (N,), the photograph of each PFV.
    excess
        (splits, levels) of :func:`agreement`, or of no split.

    Returns
    -------
    pandas.DataFrame
        Indexed by level: ``excess`` with the bounds of its 95 % interval over splits (Student's)
        ``low`` and ``high``; ``pfvs`` and ``photographs`` of the median family, ``alone``, the
        share of families of one photograph, and ``supported``: the interval lies above
        :data:`EXCESS` where there is one, and the counts are those of :data:`PHOTOGRAPHS` and
        :data:`ALONE`.

    Examples
    --------
    >>> labels, photographs = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 3, 4, 4])
    >>> parents = torch.tensor([0, 0, 1])
    >>> support(labels, parents, photographs, torch.empty(0, 2), levels=[2, 3])["alone"].tolist()
    [0.0, 0.3333333333333333]
    """
    count = len(photographs.unique())
    small = count < SMALL
    rows = []
    for place, level in enumerate(levels):
        if level > len(parents):
            continue
        family = cut(parents, level)[labels]
        pairs = torch.stack([family, photographs]).unique(dim=1)[0]
        of_each = torch.bincount(pairs, minlength=level).double()
        splits = excess[:, place]
        mean, reach = float(splits.mean()), float("nan")
        if len(splits) > 1:
            reach = float(splits.std() / len(splits) ** 0.5 * stats.t.ppf(0.975, len(splits) - 1))
        median, alone = float(of_each.median()), float((of_each == 1).double().mean())
        enough = median >= PHOTOGRAPHS[small] and alone <= ALONE
        pfvs = float(torch.bincount(family, minlength=level).double().median())
        holds = enough and (small or mean - reach > EXCESS)
        rows.append([level, mean, mean - reach, mean + reach, pfvs, median, alone, holds])
    columns = ["level", "excess", "low", "high", "pfvs", "photographs", "alone", "supported"]
    return pd.DataFrame(rows, columns=columns).set_index("level")


def supported(table: pd.DataFrame) -> int | None:
    """The largest level that :func:`support` calls supported, or None.

    Examples
    --------
    >>> supported(pd.DataFrame({"supported": [True, True, False]}, index=[4, 8, 16]))
    8
    """
    levels = table.index[table["supported"].astype(bool)]
    return int(levels.max()) if len(levels) else None

"""A graph's strongest path, taken out of the network: do its edges tell the truth?

Not in the paper, which tests concepts of one block, or of two, at a time.
"""

from collections.abc import Mapping

import torch

from .codes import Decomposition
from .importance import attribute

NEAREST = 5
"""Concepts that weigh most nearly as much as the path's own: a control path draws among them."""


def strongest_path(d: Decomposition, label: int, *, tolerance: float = 0.01) -> dict[str, int]:
    """One concept per block, from the class down, along the strongest edges (eqs. 5 and 7).

    As a graph has them: along the path to the network's own map.

    Parameters
    ----------
    d
        One picture, written as concepts of the path's blocks.
    label
        The class that the path leads to.
    tolerance
        Of :func:`.attribute` for the class; edges, of which only the largest is wanted,
        have twice that.

    Returns
    -------
    dict
        ``{block: concept}``, the last block first: there the concept with the largest relevance
        for the class, in each block below the one with the largest GIG to the concept above.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Concepts, Network
    >>> network, codes, concepts = Network(resnet18(), device="cpu"), {}, {}
    >>> for block in ("layer4.0", "layer4.1"):
    ...     v, beta = torch.rand(3, 512), network.bn_shift(block)
    ...     concepts[block] = Concepts(v, beta, torch.arange(3), block)
    ...     codes[block] = torch.rand(1, 4, 3)
    >>> d = Decomposition(network, torch.zeros(1, 3, 64, 64), concepts, codes)
    >>> list(strongest_path(d, 243))
    ['layer4.1', 'layer4.0']
    """
    last, *below = reversed(d.blocks)
    ends = attribute(d, last, label, tolerance=tolerance, rest=True)
    path = {last: int(ends[0, 0, :-1].argmax())}
    for block, above in zip(below, (last, *below), strict=False):
        brought = attribute(d, block, (above, path[above]), tolerance=2 * tolerance, rest=True)
        path[block] = int(brought[0, 0, :-1].argmax())
    return path


def control_path(
    d: Decomposition, path: Mapping[str, int], generator: torch.Generator
) -> dict[str, int]:  # fmt: skip
    """A path with the same concept in the last block, and below concepts that weigh as much.

    A concept weighs ``Σ_p |u_pq| ‖v_q‖``; in each block one of the five that weigh most nearly as
    much as the path's own is drawn.

    Parameters
    ----------
    d
        As in :func:`strongest_path`.
    path
        What that returned.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> from gig_helpers import Concepts, Network
    >>> network, codes, concepts = Network(resnet18(), device="cpu"), {}, {}
    >>> for block in ("layer4.0", "layer4.1"):
    ...     concepts[block] = Concepts(torch.eye(512)[:6], torch.zeros(512), torch.arange(6), block)
    ...     codes[block] = torch.arange(1.0, 7.0)[None, None]
    >>> d = Decomposition(network, torch.zeros(1, 3, 64, 64), concepts, codes)
    >>> control = control_path(d, {"layer4.1": 3, "layer4.0": 0}, torch.Generator().manual_seed(0))
    >>> control["layer4.1"], control["layer4.0"] in range(1, 6)
    (3, True)
    """
    (last, end), *below = path.items()
    control = {last: end}
    for block, q in reversed(below):
        here = d.concepts[block]
        mass = here.gathered(d.codes[block][0].abs().sum(dim=0) * here.vectors.norm(dim=1))
        distance = (mass - mass[q]).abs()
        distance[q] = torch.inf
        nearest = distance.topk(NEAREST, largest=False).indices
        control[block] = int(nearest[torch.randint(NEAREST, (1,), generator=generator)])
    return control

"""A graph's strongest path, taken out of the network: do its edges tell the truth?

Not in the paper, which tests concepts of one block, or of two, at a time.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .concepts import Concepts
from .gig import class_relevance, gig
from .network import Network

NEAREST = 5
"""Concepts that weigh most nearly as much as the path's own: a control path draws among them."""


def strongest_path(
    network: Network, codes: Mapping[str, Tensor], concepts: Mapping[str, Concepts], label: int,
    *, tolerance: float = 0.01,
) -> dict[str, int]:  # fmt: skip
    """One concept per block, from the class down, along the strongest edges (eqs. 5 and 7).

    Parameters
    ----------
    codes
        ``{block: (1, H·W, k)}``, one picture's codes, blocks in the network's order.
    concepts
        ``{block: Concepts}`` of these blocks.
    label
        The class that the path leads to.
    tolerance
        Of :func:`gig_helpers.gig.attribute` for the class; edges, of which only the largest is
        wanted, have twice that.

    Returns
    -------
    dict
        ``{block: concept}``, the last block first: there the concept with the largest relevance
        for the class, in each block below the one with the largest GIG to the concept above.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, codes, concepts = Network(resnet18(), device="cpu"), {}, {}
    >>> for block in ("layer4.0", "layer4.1"):
    ...     v, beta = torch.rand(3, 512), network.bn_shift(block)
    ...     concepts[block] = Concepts(v, beta, torch.arange(3), block)
    ...     codes[block] = torch.rand(1, 4, 3)
    >>> list(strongest_path(network, codes, concepts, 243))
    ['layer4.1', 'layer4.0']
    """
    last, *below = reversed(list(codes))
    here = concepts[last]
    given = network, codes[last], here.vectors, last, [label]
    relevance = class_relevance(*given, beta=here.beta, tolerance=tolerance)
    path, above = {last: int(relevance[0, 0].argmax())}, last
    for block in below:
        here, target = concepts[block], concepts[above].vectors[path[above]][None]
        given_here = network, codes[block], here.vectors, block, above, target
        brought = gig(*given_here, beta=here.beta, tolerance=2 * tolerance)
        path[block], above = int(brought[0, 0].argmax()), block
    return path


def control_path(
    codes: Mapping[str, Tensor], concepts: Mapping[str, Concepts], path: Mapping[str, int],
    generator: torch.Generator,
) -> dict[str, int]:  # fmt: skip
    """A path with the same concept in the last block, and below concepts that weigh as much.

    A concept weighs ``Σ_p |u_pq| ‖v_q‖``; in each block one of the five that weigh most nearly as
    much as the path's own is drawn.

    Parameters
    ----------
    codes, concepts
        As in :func:`strongest_path`.
    path
        What that returned.

    Examples
    --------
    >>> concepts = {b: Concepts(torch.eye(6), torch.zeros(6), torch.arange(6)) for b in "ab"}
    >>> codes = dict.fromkeys("ab", torch.arange(1.0, 7.0)[None, None])
    >>> found = control_path(codes, concepts, {"b": 3, "a": 0}, torch.Generator().manual_seed(0))
    >>> found["b"], found["a"] in range(1, 6)
    (3, True)
    """
    (last, end), *below = path.items()
    found = {last: end}
    for block, q in reversed(below):
        mass = codes[block][0].abs().sum(dim=0) * concepts[block].vectors.norm(dim=1)
        distance = (mass - mass[q]).abs()
        distance[q] = torch.inf
        nearest = distance.topk(NEAREST, largest=False).indices
        found[block] = int(nearest[torch.randint(NEAREST, (1,), generator=generator)])
    return found


@torch.no_grad()
def logits_without(
    network: Network, image: Tensor, codes: Mapping[str, Tensor],
    concepts: Mapping[str, Concepts], paths: Sequence[Mapping[str, int]],
) -> Tensor:  # fmt: skip
    """Logits after each path's concepts are taken out of the network, block after block.

    In each block u_pq v_q is subtracted at every position; all else stays, the residual of the
    Lasso included.

    Parameters
    ----------
    image
        A normalised picture (1, 3, H, W).
    codes, concepts
        As in :func:`strongest_path`.
    paths
        P of them; an empty one takes nothing out.

    Returns
    -------
    Tensor
        (P, classes).

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, image = Network(resnet18(num_classes=5), device="cpu"), torch.ones(1, 3, 64, 64)
    >>> block = "layer4.1"
    >>> concepts = {block: Concepts(torch.rand(2, 512), torch.zeros(512), torch.arange(2), block)}
    >>> codes = {block: torch.rand(1, 4, 2)}
    >>> found = logits_without(network, image, codes, concepts, [{}, {block: 1}])
    >>> torch.allclose(found[0], network.logits(image)[0]), torch.equal(found[0], found[1])
    (True, False)
    """
    blocks = list(codes)
    x = network.preactivations(image, blocks[:1])[blocks[0]]
    x = x.expand(len(paths), *x.shape[1:]).clone()
    for block, above in zip(blocks, [*blocks[1:], None], strict=True):
        for row, path in enumerate(paths):
            if (q := path.get(block)) is not None:
                part = codes[block][:, :, q, None] * concepts[block].vectors[q]
                x[row] -= network.arranged(part, block)[0]
        x = network.between(x, block, above) if above else network.logits_from(x, block)
    return x

"""The concept graph: which concepts feed which, from the pixels' side up to a class.

Figures 1, 3, 6 and 10 of the paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from .concepts import Concepts
from .gig import class_relevance, gig
from .network import Network


def concept_graph(
    network: Network, codes: Mapping[str, Tensor], concepts: Mapping[str, Concepts],
    classes: Sequence[int], *, top: int = 5, shared: int = 3,
    names: Mapping[str, str] | None = None, **options: Any,
) -> nx.DiGraph:  # fmt: skip
    """Concept graph of one picture, of one class, or of two classes (Figures 1, 3, 6 and 10).

    A block contributes the ``top`` concepts of each class by class relevance (eq. 7), averaged
    over the pictures of that class. With two classes the ``shared`` concepts, those with the
    largest smaller one of the two relevances (each divided by its class's maximum), are taken out
    first and stand in the middle. An edge is GIG (eq. 5) from a concept of one block to a concept
    of the next, averaged over all pictures; the last block's edges to a class are eq. 7.

    Parameters
    ----------
    network
        The network that the codes come from.
    codes
        ``{block: (N, H·W, k)}``: the pictures' codes at each block, blocks in the network's order.
    concepts
        ``{block: Concepts}`` of the same blocks.
    classes
        The class (N,) that each picture stands for; one or two different ones.
    top, shared
        Concepts per class and block, and concepts that two classes share.
    names
        The reader's names for concepts, by node: ``{"layer3.5/12": "bird chest"}``.
    **options
        Of :func:`gig_helpers.gig.attribute`; by default a ``tolerance`` of 5 %, since lines of a
        graph differ by more.

    Returns
    -------
    networkx.DiGraph
        Nodes ``"layer3.5/12"`` (attributes ``kind="concept"``, ``block``, ``concept``, ``group``:
        the class's index or ``"shared"``, ``relevance``: one value per class, ``name``) and
        ``"class/13"`` (``kind="class"``). Edges point from cause to effect and carry ``raw``, the
        mean GIG, and ``weight``, ``|raw|`` over the largest ``|raw|`` between the two blocks; the
        sign of ``raw`` tells support from opposition.

    Raises
    ------
    ValueError
        If there are no or more than two classes, fewer than one block, or shapes that do not fit.

    Examples
    --------
    >>> from torchvision.models import resnet18
    >>> network, codes, concepts = Network(resnet18(), device="cpu"), {}, {}
    >>> for block in ("layer4.0", "layer4.1"):
    ...     v, beta = torch.rand(3, 512), network.bn_shift(block)
    ...     concepts[block] = Concepts(v, beta, torch.arange(3), block)
    ...     codes[block] = torch.rand(1, 4, 3)
    >>> graph = concept_graph(network, codes, concepts, [243], top=2, points=2)
    >>> graph.nodes["class/243"]["name"]
    'class 243'
    """
    targets = sorted(set(classes), key=list(classes).index)
    blocks = list(codes)
    if not 1 <= len(targets) <= 2:
        raise ValueError(f"a graph shows one or two classes, got {len(targets)}: {targets}")
    if not blocks or blocks != sorted(blocks, key=network.index):
        raise ValueError(f"codes must hold blocks in the network's order, got {blocks}")
    for block in blocks:
        if len(codes[block]) != len(classes):
            raise ValueError(
                f"{block}: codes of {len(codes[block])} pictures but {len(classes)} classes"
            )
    of_class = [torch.tensor([c == target for c in classes]) for target in targets]

    graph = nx.DiGraph(blocks=blocks, classes=targets, pictures=len(classes))
    options = {"tolerance": 0.05, **options}
    for label in targets:
        graph.add_node(f"class/{label}", kind="class", block="class", name=network.classes[label])
    chosen: dict[str, Tensor] = {}
    relevance: dict[str, Tensor] = {}
    for block in blocks:
        here = concepts[block]
        own = class_relevance(
            network, codes[block], here.vectors, block, [[c] for c in classes], beta=here.beta,
            **options,
        )[:, 0].cpu()  # fmt: skip
        relevance[block] = torch.stack([own[rows].mean(0) for rows in of_class])
        groups = _choose(relevance[block], top, shared)
        for concept, group in groups.items():
            node = f"{block}/{concept}"
            about = {"kind": "concept", "block": block, "concept": concept}
            about["group"] = group if isinstance(group, str) else str(targets[group])
            values = relevance[block][:, concept].tolist()
            graph.add_node(node, **about, relevance=values, name=(names or {}).get(node, ""))
        chosen[block] = torch.tensor(list(groups), dtype=torch.long)

    for source, target in zip(blocks, blocks[1:], strict=False):
        here, above = concepts[source], concepts[target].vectors[chosen[target]]
        if not len(above):  # no concept of the later block speaks for a class
            continue
        found = gig(
            network, codes[source], here.vectors, source, target, above, beta=here.beta, **options
        )
        _add_edges(graph, source, chosen[source], target, chosen[target], found.cpu().mean(0))
    last = blocks[-1]
    _add_edges(graph, last, chosen[last], "class", torch.tensor(targets), relevance[last])
    return graph


def _choose(relevance: Tensor, top: int, shared: int) -> dict[int, int | str]:
    """Concepts of one block and the group of each: the first class, shared, the second class."""
    if len(relevance) == 1:
        return dict.fromkeys(_largest(relevance[0], top), 0)
    scaled = relevance / relevance.amax(dim=1, keepdim=True).clamp(min=1e-12)
    common = _largest(scaled.amin(dim=0), shared)
    rest = scaled.clone()
    rest[:, common] = -torch.inf
    # A concept that both classes would take goes to the one it matters more to.
    own = torch.where(rest == rest.amax(dim=0), rest, -torch.inf)
    return (
        dict.fromkeys(_largest(own[0], top), 0)
        | dict.fromkeys(common, "shared")
        | dict.fromkeys(_largest(own[1], top), 1)
    )


def _largest(scores: Tensor, count: int) -> list[int]:
    """Indices of the largest positive scores, at most ``count``."""
    values, indices = scores.sort(descending=True, stable=True)
    return indices[values > 0][:count].tolist()


def _add_edges(
    graph: nx.DiGraph, source: str, sources: Tensor, target: str, targets: Tensor, values: Tensor
) -> None:
    raw = values[:, sources]
    scale = float(raw.abs().max()) if raw.numel() else 0.0
    for t, upper in enumerate(targets.tolist()):
        for q, lower in enumerate(sources.tolist()):
            value = float(raw[t, q])
            weight = abs(value) / scale if scale else 0.0
            graph.add_edge(f"{source}/{lower}", f"{target}/{upper}", raw=value, weight=weight)

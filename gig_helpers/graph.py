"""The concept graph: which concepts feed which, from the pixels' side up to a class.

Figures 1, 3, 6 and 10 of the paper.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor

from .codes import Decomposition
from .importance import attribute, question


def concept_graph(
    d: Decomposition, classes: Sequence[int] | None = None, *, top: int = 5, shared: int = 3,
    names: Mapping[str, str] | None = None, rest: bool = True, **options: Any,
) -> nx.DiGraph:  # fmt: skip
    """Concept graph of one picture, of one class, or of two classes (Figures 1, 3, 6 and 10).

    A block contributes the ``top`` concepts of each class by class relevance (eq. 7), averaged
    over the pictures of that class. With two classes the ``shared`` concepts, those with the
    largest smaller one of the two relevances (each divided by its class's maximum), are taken out
    first and stand in the middle. An edge is GIG (eq. 5) from a concept of one block to a concept
    of the next, averaged over all pictures; the last block's edges to a class are eq. 7.

    By default attributions go along the path to the network's own map, with what the concepts leave
    of it as one more source, the rest: so they forecast better what happens when a concept is taken
    out (chapter 6), and add up to the network's own change.

    Parameters
    ----------
    d
        The pictures, written as concepts of the graph's blocks.
    classes
        The class (N,) that each picture stands for, one or two different ones; by default what the
        network says.
    top, shared
        Concepts per class and block, and concepts that two classes share.
    names
        The reader's names for concepts, by node: ``{"layer3.5/12": "bird chest"}``.
    rest
        ``False`` takes the paper's path, to the reconstruction.
    **options
        Of :func:`.attribute`; by default a ``tolerance`` of 5 %, since lines of a graph
        differ by more.

    Returns
    -------
    networkx.DiGraph
        Nodes ``"layer3.5/12"`` (attributes ``kind="concept"``, ``block``, ``concept``, ``group``:
        the class's index or ``"shared"``, ``relevance``: one value per class, ``name``) and
        ``"class/13"`` (``kind="class"``). Edges point from cause to effect and carry ``raw``, the
        mean GIG, and ``weight``, ``|raw|`` over the largest ``|raw|`` between the two blocks; the
        sign of ``raw`` tells support from opposition. ``graph.graph["held"]`` says for each block
        and class which share of the class's change along the path the nodes hold, and which the
        rest: ``{block: [[nodes, rest], …]}``.

    Raises
    ------
    ValueError
        If there are no or more than two classes, or not one per picture.

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
    >>> graph = concept_graph(d, [243], top=2, points=2)
    >>> graph.nodes["class/243"]["name"]
    'class 243'
    """
    labels = d.logits().argmax(dim=1).tolist() if classes is None else list(classes)
    targets = list(dict.fromkeys(labels))
    if not 1 <= len(targets) <= 2:
        raise ValueError(f"a graph shows one or two classes, got {len(targets)}: {targets}")
    if len(labels) != len(d):
        raise ValueError(f"{len(labels)} classes for {len(d)} pictures")
    question(d, d.blocks[0], [[label] for label in labels])  # names a class that there is not
    of_class = [torch.tensor([label == target for label in labels]) for target in targets]

    blocks = list(d.blocks)
    graph = nx.DiGraph(blocks=blocks, classes=targets, labels=labels, held={})
    options = {"tolerance": 0.05, "rest": rest, **options}
    for label in targets:
        name = d.network.classes[label]
        graph.add_node(f"class/{label}", kind="class", block="class", name=name)
    chosen: dict[str, list[int]] = {}
    relevance: dict[str, Tensor] = {}
    for block in blocks:
        own = attribute(d, block, [[label] for label in labels], **options)[:, 0].cpu()
        of_all = torch.stack([own[rows].mean(0) for rows in of_class])
        relevance[block] = of_all[:, : len(d.concepts[block])]
        groups = _choose(relevance[block], top, shared)
        parts = of_all[:, list(groups)].sum(1), of_all[:, len(d.concepts[block]) :].sum(1)
        shares = torch.stack(parts, dim=1) / of_all.sum(dim=1, keepdim=True)
        graph.graph["held"][block] = shares.tolist()
        for concept, group in groups.items():
            node = f"{block}/{concept}"
            about = {"kind": "concept", "block": block, "concept": concept}
            about["group"] = group if isinstance(group, str) else str(targets[group])
            values = relevance[block][:, concept].tolist()
            graph.add_node(node, **about, relevance=values, name=(names or {}).get(node, ""))
        chosen[block] = list(groups)

    for source, target in zip(blocks, blocks[1:], strict=False):
        if chosen[target]:  # else no concept of the later block speaks for a class
            brought = attribute(d, source, (target, chosen[target]), **options).cpu().mean(0)
            _add_edges(graph, source, chosen[source], target, chosen[target], brought)
    last = blocks[-1]
    _add_edges(graph, last, chosen[last], "class", targets, relevance[last])
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
    graph: nx.DiGraph, source: str, sources: list[int], target: str, targets: list[int],
    values: Tensor,
) -> None:  # fmt: skip
    raw = values[:, sources]
    scale = float(raw.abs().max()) if raw.numel() else 0.0
    for upper, row in zip(targets, raw.tolist(), strict=True):
        for lower, value in zip(sources, row, strict=True):
            weight = abs(value) / scale if scale else 0.0
            graph.add_edge(f"{source}/{lower}", f"{target}/{upper}", raw=value, weight=weight)

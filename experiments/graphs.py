"""Concept graphs of two classes at the paper's size: Figures 1, 6 and 10 (chapter 7)."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import networkx as nx

from gig_helpers import concept_graph, decompose

from .run import Run, write

PAIRS = {
    "1": ("house finch", "junco"),
    "10, top": ("trailer truck", "tractor"),
    "10, bottom": ("English foxhound", "Walker hound"),
    "6": ("house finch", "junco"),
}
"""Classes by the paper's figure; Figure 6 has every block, the others six."""

OF_EACH = 3
"""Photographs of a class, at most."""

SHOWN = 3
"""Classes that a concept's PFVs come from, at most."""


WEAKEST = 0.2
"""Edges between concepts with a smaller weight are not written down."""


def make(run: Run) -> None:
    """Write ``graphs.json``: of those pairs whose classes the network gets right."""
    by_class, rows = run.right_by_class(), list[dict[str, Any]]()
    for figure, names in PAIRS.items():
        classes = [run.network.classes.index(name) for name in names]
        if set(classes) <= set(by_class):
            chosen = [i for c in classes for i in by_class[c][:OF_EACH]]
            blocks = run.blocks if figure == "6" else run.chain
            row = {"figure": figure, "classes": names, "photographs": len(chosen)}
            rows.append(row | {"graph": _graph(run, chosen, blocks)})
            write(run, "graphs", rows, gap=run.profile.gap, of_each=OF_EACH)


def _graph(run: Run, chosen: list[int], blocks: Iterable[str]) -> dict[str, Any]:
    """Node-link data of one graph; a concept's ``classes`` are those that its PFVs come from."""
    predictions = run.pfvs.predictions()
    concepts = {block: run.concepts(block) for block in blocks}
    graph = concept_graph(
        decompose(run.network, run.pictures[chosen], concepts), predictions[chosen].tolist(),
        tolerance=run.profile.gap, batch_size=run.profile.batch_size,
    )  # fmt: skip
    for block, of_block in concepts.items():
        ids = run.pfvs.picture_ids(block)[~run.pfvs.held_out(block)]
        for data in (d for _, d in graph.nodes(data=True) if d["block"] == block):
            owners = ids[of_block.members(data["concept"]).cpu()].unique()
            names = (run.network.classes[c] for c in predictions[owners])
            data["photographs"] = len(owners)
            data["classes"] = dict(Counter(names).most_common(SHOWN))
    return nx.node_link_data(_thinned(graph), edges="edges")


def _thinned(graph: nx.DiGraph) -> nx.DiGraph:
    """Without the edges that no figure draws, of which only the count is kept."""
    edges = list(graph.edges(data=True))
    opposing = sum(data["raw"] < 0 for *_, data in edges)
    graph.graph |= {"edges": len(edges), "opposing": opposing}
    weak = [(a, b) for a, b, d in edges if d["weight"] < WEAKEST and not b.startswith("class/")]
    graph.remove_edges_from(weak)
    return graph

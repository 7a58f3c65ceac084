"""Concept graphs of two classes at the paper's size: Figures 1, 6 and 10 (chapter 7)."""

from collections import Counter
from typing import Any

import networkx as nx
import torch

from gig_helpers import concept_graph
from gig_helpers.codes import load_codes
from gig_helpers.data.profiles import CHAIN
from gig_helpers.report.studies import seen_right

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
    of_class: dict[int, list[int]] = {}
    for i in seen_right(run.pictures, run.dataset):
        of_class.setdefault(int(run.dataset.predictions()[i]), []).append(i)
    chain = [block for block in CHAIN if block in run.profile.blocks]
    rows: list[dict[str, Any]] = []
    for figure, names in PAIRS.items():
        classes = [run.network.classes.index(name) for name in names]
        if set(classes) <= set(of_class):
            chosen = [i for c in classes for i in of_class[c][:OF_EACH]]
            blocks = list(run.profile.blocks) if figure == "6" else chain
            row = {"figure": figure, "classes": names, "photographs": len(chosen)}
            rows.append(row | {"graph": _graph(run, chosen, blocks)})
            write(run, "graphs", rows, gap=run.profile.gap, of_each=OF_EACH)


def _graph(run: Run, chosen: list[int], blocks: list[str]) -> dict[str, Any]:
    """Node-link data of one graph; a concept's ``classes`` are those that its PFVs come from."""
    concepts = {block: run.concepts(block) for block in blocks}
    codes = {}
    for block, here in concepts.items():
        images = (run.pictures[i][None].to(run.network.device) for i in chosen)
        codes[block] = torch.cat([load_codes(run.network, image, here) for image in images])
    labels = run.dataset.predictions()[chosen].tolist()
    graph = concept_graph(
        run.network, codes, concepts, labels, tolerance=run.profile.gap,
        batch_size=run.profile.batch_size,
    )  # fmt: skip
    for block, here in concepts.items():
        ids = run.dataset.picture_ids(block)[~run.dataset.held_out(block)]
        for data in (d for _, d in graph.nodes(data=True) if d["block"] == block):
            photographs = ids[here.members(data["concept"]).cpu()].unique()
            names = (run.network.classes[c] for c in run.dataset.predictions()[photographs])
            data["photographs"] = len(photographs)
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

"""The concept graph as files for other programs."""

import json
from pathlib import Path

import networkx as nx

from ..data import artifacts


def save_json(graph: nx.DiGraph, path: str | Path) -> None:
    """Write a graph (Figure 1) as networkx' node-link JSON, atomically.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph([("layer4.2/5", "class/13", {"raw": 2.0})])
    >>> with TemporaryDirectory() as here:
    ...     save_json(graph, f"{here}/graph.json")
    ...     json.loads((Path(here) / "graph.json").read_text())["edges"]
    [{'raw': 2.0, 'source': 'layer4.2/5', 'target': 'class/13'}]
    """
    artifacts.write_json(Path(path).expanduser(), nx.node_link_data(graph, edges="edges"))


def load_json(path: str | Path) -> nx.DiGraph:
    """Read the graph (Figure 1) that :func:`save_json` wrote.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph([("layer4.2/5", "class/13", {"raw": 2.0})])
    >>> with TemporaryDirectory() as here:
    ...     save_json(graph, f"{here}/graph.json")
    ...     nx.utils.graphs_equal(load_json(f"{here}/graph.json"), graph)
    True
    """
    text = Path(path).expanduser().read_text(encoding="utf-8")
    return nx.node_link_graph(json.loads(text), edges="edges")


def save_graphml(graph: nx.DiGraph, path: str | Path) -> None:
    """Write a graph (Figure 1) as GraphML, for Gephi, yEd or Cytoscape, atomically.

    GraphML knows no lists and no dictionaries: they are written as JSON strings.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph([("layer4.2/5", "class/13", {"raw": 2.0})], classes=[13])
    >>> with TemporaryDirectory() as here:
    ...     save_graphml(graph, f"{here}/graph.graphml")
    ...     read = nx.read_graphml(f"{here}/graph.graphml")
    >>> read.edges["layer4.2/5", "class/13"], read.graph["classes"]
    ({'raw': 2.0}, '[13]')
    """
    flat = graph.copy()
    for data in (flat.graph, *flat.nodes.values()):
        data.update({k: json.dumps(v) for k, v in data.items() if isinstance(v, (list, dict))})
    place = Path(path).expanduser()
    artifacts.write_atomically(place, lambda temporary: nx.write_graphml(flat, temporary))

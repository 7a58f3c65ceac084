"""The concept graph as still figures: with its pictures (Figure 1), or by name alone (Figure 6)."""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from .examples import Illustrated
from .figures import portrait

EDGES = LinearSegmentedColormap.from_list(
    "edges", plt.get_cmap("plasma_r")(np.linspace(0.22, 0.9, 64))
)
"""Edge colours of a graph: orange (weak) over purple to indigo (strong); of Figure 1's, yellow to
navy, without the ends, which no reader sees on white or on black.

On a dark page the other way round: what is weak is near the ground.
"""

OPPOSES = "#009E73"
"""Colour of edges that oppose."""

_PATH = "#D55E00"

_TILES = ("#BCDDEE", "#FAD7A8")
"""Colours of the two classes' tiles."""

_RIM: dict = {"zorder": 6, "path_effects": [withStroke(linewidth=3, foreground="white")]}
"""Of a text that edges pass under."""

Edge = tuple[str, str, float]
"""Source, target, weight."""


def layout(graph: nx.DiGraph) -> tuple[dict[str, tuple[float, float]], tuple[float, ...]]:
    """Places, and the shared concepts' leftmost and rightmost one, if there are any.

    Classes on top, blocks downwards; left, shared and right groups side by side.

    Examples
    --------
    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> graph.add_node("layer4.2/5", block="layer4.2", group="13")
    >>> graph.add_node("layer4.2/6", block="layer4.2", group="13")
    >>> graph.add_node("class/13", block="class")
    >>> layout(graph)
    ({'layer4.2/5': (0.0, 0.0), 'layer4.2/6': (1.0, 0.0), 'class/13': (0.5, 1.0)}, ())
    """
    classes, blocks = graph.graph["classes"], graph.graph["blocks"]
    groups = [str(label) for label in classes]
    groups[1:1] = ["shared"] * (len(classes) - 1)
    places: dict[str, tuple[float, float]] = {}
    of = {node: (d["block"], d.get("group")) for node, d in graph.nodes(data=True)}
    start = 0.0
    for group in groups:
        rows = [[node for node in of if of[node] == (block, group)] for block in blocks]
        width = max(1, *map(len, rows))
        for row, nodes in enumerate(rows):
            offset = start + (width - len(nodes)) / 2
            places |= {node: (offset + i, float(row)) for i, node in enumerate(nodes)}
        if group != "shared":
            places[f"class/{group}"] = (start + (width - 1) / 2, float(len(blocks)))
        start += width + (0.35 if len(groups) > 1 else 0.0)
    common = [places[node][0] for node, (_, group) in of.items() if group == "shared"]
    return places, (min(common), max(common)) if common else ()


def edges(
    graph: nx.DiGraph, threshold: float, always: Sequence[tuple[str, str]] = ()
) -> tuple[list[Edge], list[Edge]]:
    """Edges that figures draw, the weakest first: those that support, those that oppose.

    They have a weight of at least ``threshold``, or one at all and end at a class, or are
    ``always`` drawn.

    Examples
    --------
    >>> graph = nx.DiGraph([("layer3.5/1", "layer4.2/5", {"raw": -0.5, "weight": 0.1})])
    >>> graph.add_edge("layer4.2/5", "class/13", raw=2.0, weight=1.0)
    >>> edges(graph, 0.3)
    ([('layer4.2/5', 'class/13', 1.0)], [])
    >>> edges(graph, 0.3, always=[("layer3.5/1", "layer4.2/5")])[1]
    [('layer3.5/1', 'layer4.2/5', 0.1)]
    """
    signs: tuple[list[Edge], list[Edge]] = ([], [])
    for a, b, data in sorted(graph.edges(data=True), key=lambda edge: edge[2]["weight"]):
        strong = data["weight"] >= threshold or (b.startswith("class/") and data["weight"] > 0)
        if strong or (a, b) in always:
            signs[data["raw"] < 0].append((a, b, data["weight"]))
    return signs


def strongest_line(graph: nx.DiGraph, end: str) -> list[str]:
    """From a concept of the first block to a node, back along the edges with the largest GIG.

    Examples
    --------
    >>> graph = nx.DiGraph([("layer4.2/5", "class/13", {"raw": 2.0})])
    >>> graph.add_edge("layer4.2/6", "class/13", raw=-3.0)
    >>> strongest_line(graph, "class/13")
    ['layer4.2/5', 'class/13']
    """
    line = [end]
    while feeds := {a: raw for a, _, raw in graph.in_edges(line[0], data="raw")}:
        line.insert(0, max(feeds, key=lambda node: feeds[node]))
    return line


def still_graph(shown: Illustrated, threshold: float = 0.3, path: Sequence[str] = ()) -> Figure:
    """Concept graph as a still figure, after the paper's Figure 1; of one class, lying on its side.

    Parameters
    ----------
    shown
        The graph with its pictures, of :func:`gig_helpers.report.examples.illustrate`.
    threshold
        Edges between concepts with a smaller weight are left out, but for those of the path.
    path
        Nodes from one end to the other, such as :func:`strongest_line`'s; they and the edges
        between them stand out in orange.

    Notes
    -----
    Edges: the thicker and darker, the stronger; dashed green ones oppose (negative GIG). Under a
    node stands its number, and its name if it has one; a star if its ``photographs``, where the
    graph knows them, are one.

    Examples
    --------
    One concept of one class, as :func:`.concept_graph` would give it.

    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> about = {"kind": "concept", "block": "layer4.2", "concept": 5, "group": "13"}
    >>> graph.add_node("layer4.2/5", **about, relevance=[2.0], name="beak", photographs=1)
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> graph.add_edge("layer4.2/5", "class/13", raw=2.0, weight=1.0)
    >>> from PIL import Image
    >>> from gig_helpers.report.examples import Example
    >>> shot = Example(np.zeros((40, 40, 3), np.uint8), np.ones((40, 40)), (5, 5, 20), "a.png", "")
    >>> shown = Illustrated(graph, {"layer4.2/5": [shot]}, {13: Image.new("RGB", (40, 40))})
    >>> figure = still_graph(shown, path=strongest_line(graph, "class/13"))
    >>> len(figure.axes[0].images), [text.get_text() for text in figure.axes[0].texts]
    (2, ['5* beak', 'junco', 'layer4.2'])
    >>> plt.close(figure)
    """
    graph = shown.graph
    places, frame = layout(graph)
    blocks = graph.graph["blocks"]
    lying, pitch = len(graph.graph["classes"]) == 1, 1.35
    centre = {
        n: (pitch * y, -1.15 * x) if lying else (x, pitch * y) for n, (x, y) in places.items()
    }
    (left, right), (bottom, top) = ((min(z), max(z)) for z in zip(*centre.values(), strict=True))
    size = (right - left + 2.2, top - bottom + 2.2)
    figure, axes = plt.subplots(figsize=(max(5.0, 0.98 * size[0]), 0.98 * size[1]))
    _draw_edges(axes, centre, edges(graph, threshold, [*itertools.pairwise(path)]))
    if path:
        along = zip(*(centre[node] for node in path), strict=True)
        axes.plot(*along, color=_PATH, lw=7, alpha=0.45, zorder=1)
    for node, (x, y) in centre.items():
        data = graph.nodes[node]
        near = shown.examples.get(node)
        image = portrait(near[0]) if near else shown.faces[int(node.split("/")[1])]
        box = (x - 0.4, x + 0.4, y - 0.4, y + 0.4)
        axes.imshow(np.asarray(image), extent=box, zorder=5)
        if node in path:
            edge = Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, fill=False, lw=3, ec=_PATH, zorder=6)
            axes.add_patch(edge)
        if near:  # its name is a reader's, not a formula
            star = "*" if data.get("photographs") == 1 else ""
            name = f"{data['concept']}{star} {data['name']}"
            name = textwrap.shorten(name, 17, placeholder=" …")  # as wide as a tile
            axes.text(x - 0.4, y - 0.47, name, va="top", size="x-small", parse_math=False, zorder=6)
        else:
            axes.text(x, y + 0.46, data["name"], ha="center", va="bottom", **_RIM)
    for row, block in enumerate(blocks):
        if lying:
            short = block if len(block) < 12 else block.split(".")[-1]
            axes.text(pitch * row, top + 0.55, short, ha="center", va="bottom", fontsize="small")
        else:
            axes.text(-0.6, pitch * row, block, ha="right", va="center", fontsize="small")
    _draw_frame(axes, frame, -0.65, pitch * (len(blocks) - 1) + 0.5)
    axes.set(aspect="equal", ylim=(bottom - 0.75, top + 0.9))
    axes.set_xlim(left - (0.5 if lying else 1.5), right + 0.6)
    axes.set_axis_off()
    scale_of_edges(figure, axes)
    return figure


def named_graph(axes: Axes, graph: nx.DiGraph, threshold: float = 0.3) -> None:
    """Concept graph without pictures (Figure 6): a tile per concept with what its PFVs are from.

    Parameters
    ----------
    graph
        Its concept nodes have ``photographs``, how many their PFVs come from, and ``classes``:
        these photographs by class, the commonest first.
    threshold
        Edges between concepts with a smaller weight are left out.

    Notes
    -----
    A tile names the class of at least half of the photographs; where there is none, it says of how
    many they are. Lines as in :func:`still_graph`.

    Examples
    --------
    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> about = {"kind": "concept", "block": "layer4.2", "concept": 5, "group": "13"}
    >>> graph.add_node("layer4.2/5", **about, photographs=3, classes={"junco": 2, "brambling": 1})
    >>> graph.add_node("layer4.2/6", **about, photographs=3, classes={"junco": 1, "brambling": 1})
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> graph.add_edge("layer4.2/5", "class/13", raw=2.0, weight=1.0)
    >>> figure, axes = plt.subplots()
    >>> named_graph(axes, graph)
    >>> [text.get_text() for text in axes.texts]
    ['junco', 'of 3', 'junco', 'layer4.2']
    >>> plt.close(figure)
    """
    places, frame = layout(graph)
    blocks, classes = graph.graph["blocks"], graph.graph["classes"]
    _draw_edges(axes, places, edges(graph, threshold))
    colours = {str(c): colour for c, colour in zip(classes, _TILES, strict=False)}
    style: dict[str, Any] = {"va": "center", "parse_math": False, "zorder": 6, "color": "black"}
    for node, (x, y) in places.items():
        data = graph.nodes[node]
        colour = colours.get(data.get("group", node.split("/")[1]), "0.9")
        name, wide, size = data.get("name"), 2.6, 9.0
        if data["kind"] == "concept":
            (name, most), wide, size = max(data["classes"].items(), key=lambda c: c[1]), 0.96, 5.5
            name = name if 2 * most >= data["photographs"] else f"of {data['photographs']}"
        corner = x - wide / 2, y - 0.2
        axes.add_patch(Rectangle(corner, wide, 0.4, fc=colour, ec="0.4", lw=0.5, zorder=5))
        lines = textwrap.wrap(name, 11 if wide < 1 else 22, max_lines=2, placeholder="…")
        axes.text(x, y, "\n".join(lines), ha="center", size=size, linespacing=0.9, **style)
    for row, block in enumerate(blocks):
        axes.text(-0.65, row, block, ha="right", size="x-small", **style)
    _draw_frame(axes, frame, -0.3, len(blocks) - 0.7)
    right = max(x for x, _ in places.values())
    axes.set(xlim=(-1.6, right + 0.6), ylim=(-0.4, len(blocks) + 0.3))
    axes.set_axis_off()


def _draw_edges(
    axes: Axes, centre: Mapping[str, tuple[float, float]], signs: tuple[list[Edge], list[Edge]]
) -> None:
    for oppose, drawn in enumerate(signs):
        weights = np.array([weight for *_, weight in drawn])
        lines = LineCollection(
            [(centre[a], centre[b]) for a, b, _ in drawn], zorder=2,
            linewidths=0.3 + (1.2 if oppose else 2.8) * weights, alpha=0.6 if oppose else 0.9,
            colors=OPPOSES if oppose else EDGES(weights),
            linestyles="dashed" if oppose else "solid",
        )  # fmt: skip
        axes.add_collection(lines)


def _draw_frame(axes: Axes, frame: tuple[float, ...], bottom: float, top: float) -> None:
    """A frame around the shared concepts, if there are any."""
    if frame:
        left, width = frame[0] - 0.5, frame[1] - frame[0] + 1.0
        axes.add_patch(Rectangle((left, bottom), width, top - bottom, fill=False, lw=2, ec="0.25"))
        axes.text(left + width / 2, top + 0.05, "shared concepts", ha="center", **_RIM)


def scale_of_edges(figure: Figure, axes: Axes | Sequence[Axes]) -> None:
    """What an edge's colour means, below the axes that :func:`named_graph` drew on (Figure 1).

    Examples
    --------
    >>> figure, axes = plt.subplots()
    >>> scale_of_edges(figure, axes)
    >>> figure.axes[1].get_xlabel()[:27]
    'share of the strongest line'
    >>> plt.close(figure)
    """
    scale = ScalarMappable(cmap=EDGES)
    bar = figure.colorbar(scale, ax=axes, location="bottom", fraction=0.025, pad=0.01, aspect=40)
    bar.set_label("share of the strongest line between two blocks (dashed: opposes)")

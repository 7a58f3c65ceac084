"""The concept graph as figures: still (Figure 1), to explore, and as files for other programs."""

import base64
import html
import io
import itertools
import json
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from ..data import artifacts
from .examples import Example
from .figures import portrait

EDGES = plt.get_cmap("plasma_r")
"""Edge colours of a graph: yellow (weak) over purple to navy (strong), as in Figure 1.

On a dark page the other way round: what is weak is near the ground.
"""

_OPPOSES, _PATH = "#009E73", "#D55E00"

_TILES = ("#BCDDEE", "#FAD7A8")
"""Colours of the two classes' tiles."""

_RIM: dict[str, Any] = {
    "zorder": 6, "path_effects": [withStroke(linewidth=3, foreground="white")]
}  # fmt: skip
"""Of a text that edges pass under."""

_Edge = tuple[str, str, float]

_WEAKEST = 0.02
"""Edges of an interactive graph below this weight are not sent to the page."""

_LEVELS = 6
"""Steps of width and colour of an interactive graph's edges."""

_SIDE = 0.8
"""Side of a node in an interactive graph; rows are 1 apart."""


def _layout(graph: nx.DiGraph) -> tuple[dict[str, tuple[float, float]], tuple[float, ...]]:
    """Places, and the shared concepts' leftmost and rightmost one, if there are any.

    Classes on top, blocks downwards; left, shared and right groups side by side.
    """
    classes, blocks = graph.graph["classes"], graph.graph["blocks"]
    groups = [str(label) for label in classes]
    groups[1:1] = ["shared"] * (len(classes) - 1)
    places: dict[str, tuple[float, float]] = {}
    start = 0.0
    for group in groups:
        rows = [
            [n for n, d in graph.nodes(data=True) if (d["block"], d.get("group")) == (block, group)]
            for block in blocks
        ]
        width = max(1, *map(len, rows))
        for row, nodes in enumerate(rows):
            offset = start + (width - len(nodes)) / 2
            places |= {node: (offset + i, float(row)) for i, node in enumerate(nodes)}
        if group != "shared":
            places[f"class/{group}"] = (start + (width - 1) / 2, float(len(blocks)))
        start += width + (0.35 if len(groups) > 1 else 0.0)
    common = [places[n][0] for n, d in graph.nodes(data=True) if d.get("group") == "shared"]
    return places, (min(common), max(common)) if common else ()


def still_graph(
    graph: nx.DiGraph, thumbnails: Mapping[str, Example],
    pictures: Mapping[int, np.ndarray | Image.Image], threshold: float = 0.3,
    path: Sequence[str] = (),
) -> Figure:  # fmt: skip
    """Concept graph as a still figure, after the paper's Figure 1; of one class, lying on its side.

    Parameters
    ----------
    thumbnails
        One example per concept node.
    pictures
        One picture per class.
    threshold
        Edges between concepts with a smaller weight are left out, but for those of the path.
    path
        Nodes from one end to the other; they and the edges between them stand out in orange.

    Notes
    -----
    Edges: the thicker and darker, the stronger; dashed green ones oppose (negative GIG). Under a
    node stands its number, and its name if it has one; a star if its ``photographs``, where the
    graph knows them, are one.

    Examples
    --------
    One concept of one class, as :func:`gig_helpers.graph.concept_graph` would give it.

    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> about = {"kind": "concept", "block": "layer4.2", "concept": 5, "group": "13"}
    >>> graph.add_node("layer4.2/5", **about, relevance=[2.0], name="beak", photographs=1)
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> graph.add_edge("layer4.2/5", "class/13", raw=2.0, weight=1.0)
    >>> shot = Example(np.zeros((40, 40, 3), np.uint8), np.ones((40, 40)), (5, 5, 20), "a.png", "")
    >>> junco = np.zeros((40, 40, 3), np.uint8)
    >>> figure = still_graph(graph, {"layer4.2/5": shot}, {13: junco}, path=[*graph])
    >>> len(figure.axes[0].images), [text.get_text() for text in figure.axes[0].texts]
    (2, ['5* beak', 'junco', 'layer4.2'])
    >>> plt.close(figure)
    """
    places, frame = _layout(graph)
    blocks = graph.graph["blocks"]
    lying = len(graph.graph["classes"]) == 1
    pitch = 1.35
    centre = {
        node: (pitch * y, -1.15 * x) if lying else (x, pitch * y) for node, (x, y) in places.items()
    }
    (left, bottom), (right, top) = (
        pick(np.array([*centre.values()]), 0) for pick in (np.min, np.max)
    )
    size = (right - left + 2.2, top - bottom + 2.2)
    figure, axes = plt.subplots(figsize=(max(5.0, 0.98 * size[0]), 0.98 * size[1]))
    steps = [*itertools.pairwise(path)]
    _draw_edges(axes, graph, centre, threshold, steps)
    for a, b in steps:
        axes.plot(*zip(centre[a], centre[b], strict=True), color=_PATH, lw=7, alpha=0.45, zorder=1)
    for node, (x, y) in centre.items():
        data = graph.nodes[node]
        concept = node in thumbnails
        image = portrait(thumbnails[node]) if concept else pictures[int(node.split("/")[1])]
        box = (x - 0.4, x + 0.4, y - 0.4, y + 0.4)
        axes.imshow(np.asarray(image), extent=box, zorder=5)
        if node in path:
            edge = Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, fill=False, lw=3, ec=_PATH, zorder=6)
            axes.add_patch(edge)
        if concept:  # its name is a reader's, not a formula
            star = "*" if data.get("photographs") == 1 else ""
            name = f"{data['concept']}{star} {data['name']}".strip()
            below = x - 0.4, y - 0.47
            axes.text(*below, name, va="top", fontsize="x-small", parse_math=False, zorder=6)
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
    places, frame = _layout(graph)
    blocks, classes = graph.graph["blocks"], graph.graph["classes"]
    pitch, high = 1.0, 0.4
    centre = {node: (x, pitch * y) for node, (x, y) in places.items()}
    _draw_edges(axes, graph, centre, threshold)
    colours = {str(c): colour for c, colour in zip(classes, _TILES, strict=False)}
    style: dict[str, Any] = {"va": "center", "parse_math": False, "zorder": 6, "color": "black"}
    for node, (x, y) in centre.items():
        data = graph.nodes[node]
        colour = colours.get(data.get("group", node.split("/")[1]), "0.9")
        if data["kind"] == "concept":
            commonest = max(data["classes"], key=data["classes"].get)
            mixed = 2 * data["classes"][commonest] < data["photographs"]
            name, wide, size = commonest, 0.96, 5.5
            if mixed:
                name = f"of {data['photographs']}"
        else:
            name, wide, size = data["name"], 2.6, 9.0
        corner = x - wide / 2, y - high / 2
        axes.add_patch(Rectangle(corner, wide, high, fc=colour, ec="0.4", lw=0.5, zorder=5))
        lines = textwrap.wrap(name, 11 if wide < 1 else 22, max_lines=2, placeholder="…")
        axes.text(x, y, "\n".join(lines), ha="center", size=size, linespacing=0.9, **style)
    for row, block in enumerate(blocks):
        axes.text(-0.65, pitch * row, block, ha="right", size="x-small", **style)
    _draw_frame(axes, frame, -0.3, pitch * (len(blocks) - 1) + 0.3)
    axes.set(ylim=(-0.4, pitch * len(blocks) + 0.3))
    axes.set_xlim(-1.6, max(x for x, _ in centre.values()) + 0.6)
    axes.set_axis_off()


def _draw_edges(
    axes: Axes, graph: nx.DiGraph, centre: Mapping[str, tuple[float, float]], threshold: float,
    always: Sequence[tuple[str, str]] = (),
) -> None:  # fmt: skip
    for oppose, drawn in enumerate(_edges(graph, threshold, always)):
        weights = np.array([weight for *_, weight in drawn])
        lines = LineCollection(
            [(centre[a], centre[b]) for a, b, _ in drawn], zorder=2,
            linewidths=0.3 + (1.2 if oppose else 2.8) * weights, alpha=0.6 if oppose else 0.9,
            colors=_OPPOSES if oppose else EDGES(weights),
            linestyles="dashed" if oppose else "solid",
        )  # fmt: skip
        axes.add_collection(lines)


def _draw_frame(axes: Axes, frame: tuple[float, ...], bottom: float, top: float) -> None:
    """A frame around the shared concepts, if there are any."""
    if frame:
        left, width = frame[0] - 0.5, frame[1] - frame[0] + 1.0
        box = Rectangle((left, bottom), width, top - bottom, fill=False, lw=2, ec="0.25")
        axes.add_patch(box)
        axes.text(left + width / 2, top + 0.05, "shared concepts", ha="center", **_RIM)


def scale_of_edges(figure: Figure, axes: Axes | Sequence[Axes]) -> None:
    """What an edge's colour means, below the axes that :func:`named_graph` drew on (Figure 1).

    Examples
    --------
    >>> figure, axes = plt.subplots()
    >>> scale_of_edges(figure, axes)
    >>> figure.axes[1].get_xlabel().split(",")[0]
    'GIG between neighbouring blocks'
    >>> plt.close(figure)
    """
    scale = ScalarMappable(cmap=EDGES)
    bar = figure.colorbar(scale, ax=axes, location="bottom", fraction=0.025, pad=0.01, aspect=40)
    bar.set_label("GIG between neighbouring blocks, |value| / largest |value| (dashed: opposes)")


def interactive_graph(
    graph: nx.DiGraph, examples: Mapping[str, Sequence[Example]],
    pictures: Mapping[int, np.ndarray | Image.Image], threshold: float = 0.3,
) -> go.Figure:  # fmt: skip
    """Concept graph as a plotly figure: hover a concept for its block, relevance and neighbours.

    Parameters
    ----------
    examples
        Examples of every concept node, the nearest first: it is the node's thumbnail, and all of
        them are on its card.
    pictures
        One picture per class.
    threshold
        Edges between concepts with a smaller weight are left out.

    Notes
    -----
    On the book's pages and in :func:`save_html`'s file ``explore_graph.js`` adds the cards, a
    click that follows one concept, and sliders for the threshold and the number of concepts.

    Examples
    --------
    One concept of one class, as :func:`gig_helpers.graph.concept_graph` would give it.

    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> about = {"kind": "concept", "block": "layer4.2", "concept": 5, "group": "13"}
    >>> graph.add_node("layer4.2/5", **about, relevance=[2.0], name="beak")
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> graph.add_edge("layer4.2/5", "class/13", raw=2.0, weight=1.0)
    >>> shot = Example(np.zeros((40, 40, 3), np.uint8), np.ones((40, 40)), (5, 5, 20), "a.png", "")
    >>> junco = np.zeros((40, 40, 3), np.uint8)
    >>> figure = interactive_graph(graph, {"layer4.2/5": [shot]}, {13: junco})
    >>> for line in figure.data[-1].text[0].split("<br>"):
    ...     print(line)
    layer4.2, concept 5 “beak”
    relevance for junco: 2
    to class/13 (+2)
    nearest PFVs from a.png
    """
    places, frame = _layout(graph)
    nodes, blocks = list(places), graph.graph["blocks"]
    columns = max(x for x, _ in places.values()) + 1
    figure = go.Figure()
    for line, dark, within in _bundles(graph):
        drawn = [(places[a], places[b]) for a, b, weight in within if _shown(b, weight, threshold)]
        ends = [[value for p, q in drawn for value in (p[i], q[i], None)] for i in (0, 1)]
        edges = [[nodes.index(a), nodes.index(b), weight] for a, b, weight in within]
        meta = {"edges": edges, "colours": [line["color"], dark]}
        common = {"mode": "lines", "line": line, "hoverinfo": "skip"}
        figure.add_scatter(x=ends[0], y=ends[1], meta=meta, **common)
        # Its twin takes the edges that fade when the reader follows one concept.
        figure.add_scatter(x=[], y=[], opacity=0.08, **common)
    about = [_about(graph, node, examples) for node in nodes]
    xs, ys = zip(*places.values(), strict=True)
    figure.add_scatter(
        x=xs, y=ys, mode="markers", hovertemplate="%{text}<extra></extra>",
        marker={"size": 44, "symbol": "square", "color": "rgba(255,255,255,0.01)"},
        text=["<br>".join(map(html.escape, lines)) for lines in about],
    )  # fmt: skip
    cards = []
    ranks: dict[tuple[str, str], Iterator[int]] = defaultdict(itertools.count)
    for node, lines in zip(nodes, about, strict=True):
        data = graph.nodes[node]
        row = (data["block"], data.get("group", node))
        strip = [np.asarray(portrait(example, 96)) for example in examples.get(node, ())]
        image = strip[0] if strip else pictures[int(node.split("/")[1])]
        place = dict(zip("xy", places[node], strict=True))
        figure.add_layout_image(
            source=_data_url(image), xref="x", yref="y", sizex=_SIDE, sizey=_SIDE,
            xanchor="center", yanchor="middle", layer="above", **place,
        )  # fmt: skip
        # White between the pictures of a card, none after the last.
        apart = [np.pad(image, ((0, 0), (0, 6), (0, 0)), constant_values=255) for image in strip]
        card = {"side": _SIDE, "rank": next(ranks[row]), "title": lines[0], "lines": lines[1:]}
        card["card"] = ""
        if strip:
            card["card"] = _data_url(np.hstack(apart)[:, :-6], 640)
        cards.append(place | card)
        if not strip:
            above = {"x": place["x"], "y": place["y"] + 0.52}
            figure.add_annotation(text=html.escape(lines[0]), showarrow=False, **above)
    if frame:
        label = {"text": "shared concepts", "textposition": "top center", "padding": 2}
        figure.add_shape(
            x0=frame[0] - 0.55, x1=frame[1] + 0.55, y0=-0.45, y1=len(blocks) - 0.35, layer="below",
            line={"width": 1, "color": "grey"}, label=label,
        )  # fmt: skip
    hint = (
        "Point at a concept, tap it, or reach the graph with the Tab key and go on with the "
        "arrows, to see its card here. Click it, or press Enter, to follow it; Escape shows all "
        "again."
    )
    legend = [
        ["supports, strongly", _colours(1.0), 4.5, ""],
        ["supports, weakly", _colours(1 / _LEVELS), 1.5, ""],
        ["opposes", [_OPPOSES, _OPPOSES], 2.5, "6 4"],
    ]
    shown = {"nodes": cards, "threshold": threshold, "columns": columns}
    shown |= {"hint": hint, "legend": legend}
    figure.update_layout(
        showlegend=False, height=130 * (len(blocks) + 1), template="plotly_white",
        margin={"l": 70, "r": 10, "t": 10, "b": 10}, meta={"graph": shown},
    )  # fmt: skip
    figure.update_xaxes(visible=False, fixedrange=True, range=[-0.6, columns - 0.4])
    figure.update_yaxes(
        tickvals=list(range(len(blocks) + 1)), ticktext=[*blocks, "class"], showgrid=False,
        zeroline=False, fixedrange=True, range=[-0.5, len(blocks) + 0.75],
    )  # fmt: skip
    return figure


def _shown(target: str, weight: float, threshold: float) -> bool:
    return weight >= threshold or (target.startswith("class/") and weight > 0)


def _edges(
    graph: nx.DiGraph, threshold: float, always: Sequence[tuple[str, str]] = ()
) -> tuple[list[_Edge], list[_Edge]]:
    """Edges that are shown, the weakest first: those that support, those that oppose."""
    found: tuple[list[_Edge], list[_Edge]] = ([], [])
    for a, b, data in sorted(graph.edges(data=True), key=lambda edge: edge[2]["weight"]):
        if _shown(b, data["weight"], threshold) or (a, b) in always:
            found[data["raw"] < 0].append((a, b, data["weight"]))
    return found


def _colours(weight: float) -> list[str]:
    """An edge's colour on a light page and on a dark one."""
    return [to_hex(EDGES(weight)), to_hex(EDGES.reversed()(weight))]


def _bundles(graph: nx.DiGraph) -> Iterator[tuple[dict[str, Any], str, list[_Edge]]]:
    """Edges of like weight and sign, one line to plotly: style, colour on dark, edges."""
    signs = _edges(graph, _WEAKEST)
    for level in range(_LEVELS):
        low, high = level / _LEVELS, (level + 1) / _LEVELS
        for oppose, edges in enumerate(signs):
            light, dark = (_OPPOSES, _OPPOSES) if oppose else _colours(high)
            if within := [edge for edge in edges if low < edge[2] <= high]:
                dash = "dash" if oppose else "solid"
                yield {"width": 0.5 + 4 * high, "color": light, "dash": dash}, dark, within


def save_html(figure: go.Figure, path: Path) -> None:
    """Write :func:`interactive_graph`'s figure as one HTML file that needs nothing else.

    The file holds plotly, the pictures and what makes the graph explorable, and opens in any
    browser without internet. It is written atomically.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> figure = interactive_graph(graph, {}, {13: np.zeros((40, 40, 3), np.uint8)})
    >>> with TemporaryDirectory() as here:
    ...     save_html(figure, Path(here) / "graph.html")
    ...     text = (Path(here) / "graph.html").read_text(encoding="utf-8")
    >>> "exploreGraph" in text, "junco" in text
    (True, True)
    """
    script = Path(__file__).with_name("explore_graph.js").read_text(encoding="utf-8")
    script += "\nexploreGraph(document.getElementById('{plot_id}'));"
    config = {"displayModeBar": False}  # one of its buttons offers to upload the figure
    text = figure.to_html(include_plotlyjs=True, post_script=script, config=config)
    artifacts.write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def _about(graph: nx.DiGraph, node: str, examples: Mapping[str, Sequence[Example]]) -> list[str]:
    """A node's title and what there is to say of it, as plain text: whoever shows it escapes it."""
    data = graph.nodes[node]
    if data["kind"] == "class":
        lines = [data["name"]]
    else:
        lines = [f"{data['block']}, concept {data['concept']}"]
        if data["name"]:
            lines[0] += f" “{data['name']}”"
        if made := data.get("photographs"):
            lines.append(f"made of PFVs of {made} photograph{'s' * (made > 1)}")
        for label, value in zip(graph.graph["classes"], data["relevance"], strict=True):
            lines.append(f"relevance for {graph.nodes[f'class/{label}']['name']}: {value:.3g}")
    for word, edges in (("from", graph.pred[node]), ("to", graph.succ[node])):
        values = {other: edge["raw"] for other, edge in edges.items()}
        strongest = sorted(values, key=lambda other: -abs(values[other]))[:3]
        if strongest:
            lines.append(f"{word} {', '.join(f'{n} ({values[n]:+.3g})' for n in strongest)}")
    if shown := dict.fromkeys(example.picture for example in examples.get(node, ())):
        lines.append(f"nearest PFVs from {', '.join(shown)}")
    return lines


def _data_url(image: np.ndarray | Image.Image, size: int = 96) -> str:
    # In RGB first: what is transparent would be mixed in as black.
    shown = Image.fromarray(np.asarray(image)).convert("RGB")
    shown.thumbnail((size, size))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_json(graph: nx.DiGraph, path: Path) -> None:
    """Write a graph (Figure 1) as networkx' node-link JSON, atomically.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph([("layer4.2/5", "class/13", {"raw": 2.0})])
    >>> with TemporaryDirectory() as here:
    ...     save_json(graph, Path(here) / "graph.json")
    ...     json.loads((Path(here) / "graph.json").read_text())["edges"]
    [{'raw': 2.0, 'source': 'layer4.2/5', 'target': 'class/13'}]
    """
    artifacts.write_json(path, nx.node_link_data(graph, edges="edges"))


def load_json(path: Path) -> nx.DiGraph:
    """Read the graph (Figure 1) that :func:`save_json` wrote.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph([("layer4.2/5", "class/13", {"raw": 2.0})])
    >>> with TemporaryDirectory() as here:
    ...     save_json(graph, Path(here) / "graph.json")
    ...     nx.utils.graphs_equal(load_json(Path(here) / "graph.json"), graph)
    True
    """
    return nx.node_link_graph(json.loads(path.read_text(encoding="utf-8")), edges="edges")


def save_graphml(graph: nx.DiGraph, path: Path) -> None:
    """Write a graph (Figure 1) as GraphML, for Gephi, yEd or Cytoscape, atomically.

    GraphML knows no lists: they are written as JSON strings.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph([("layer4.2/5", "class/13", {"raw": 2.0})], classes=[13])
    >>> with TemporaryDirectory() as here:
    ...     save_graphml(graph, Path(here) / "graph.graphml")
    ...     read = nx.read_graphml(Path(here) / "graph.graphml")
    >>> read.edges["layer4.2/5", "class/13"], read.graph["classes"]
    ({'raw': 2.0}, '[13]')
    """
    flat = graph.copy()
    for data in (flat.graph, *flat.nodes.values()):
        data.update({k: json.dumps(v) for k, v in data.items() if isinstance(v, list)})
    artifacts.write_atomically(path, lambda temporary: nx.write_graphml(flat, temporary))

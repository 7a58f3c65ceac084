"""The concept graph as figures: still (Figure 1), to explore, and as files for other programs."""

import base64
import html
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import plotly.graph_objects as go
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..data import artifacts
from ..data.pictures import class_names
from .examples import Example
from .figures import portrait

EDGES = plt.get_cmap("plasma_r")
"""Edge colours of a graph: yellow (weak) over purple to navy (strong), as in Figure 1."""

_OPPOSES = "#009E73"

_WEAKEST = 0.02
"""Edges of an interactive graph below this weight are not sent to the page."""

_LEVELS = 6
"""Steps of width and colour of an interactive graph's edges."""

_TALL = 0.62
"""Height of a node in an interactive graph; rows are 1 apart."""


def _layout(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """Classes on top, blocks downwards; left, shared and right groups side by side."""
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
    return places


def _shared_frame(
    graph: nx.DiGraph, places: Mapping[str, tuple[float, float]]
) -> tuple[float, float] | None:
    """Leftmost and rightmost place of the shared concepts, if there are any."""
    common = [places[n][0] for n, d in graph.nodes(data=True) if d.get("group") == "shared"]
    return (min(common), max(common)) if common else None


def still_graph(
    graph: nx.DiGraph, thumbnails: Mapping[str, Example],
    pictures: Mapping[int, np.ndarray | Image.Image], threshold: float = 0.05,
) -> Figure:  # fmt: skip
    """Concept graph as a still figure, after the paper's Figure 1.

    Parameters
    ----------
    thumbnails
        One example a concept node.
    pictures
        One picture a class.
    threshold
        Edges with a smaller weight are left out.

    Notes
    -----
    Edges: the thicker and darker, the stronger; dashed green ones oppose (negative GIG).
    """
    places = _layout(graph)
    blocks = graph.graph["blocks"]
    columns = max(x for x, _ in places.values()) + 1
    figure, axes = plt.subplots(figsize=(max(5.0, 0.95 * columns), 1.25 * (len(blocks) + 1)))
    size, tall = 0.6, 1.35
    centre = {node: (x + 0.4, tall * y + 0.3) for node, (x, y) in places.items()}

    edges = sorted(graph.edges(data=True), key=lambda edge: edge[2]["weight"])
    for oppose in (False, True):
        drawn = [
            (centre[a], centre[b], d["weight"])
            for a, b, d in edges
            if d["weight"] >= threshold and (d["raw"] < 0) == oppose
        ]
        weights = np.array([weight for *_, weight in drawn])
        lines = LineCollection(
            [ends for *ends, _ in drawn], linewidths=0.3 + (1.2 if oppose else 2.8) * weights,
            colors=_OPPOSES if oppose else EDGES(weights), alpha=0.6 if oppose else 0.9, zorder=2,
            linestyles="dashed" if oppose else "solid",
        )  # fmt: skip
        axes.add_collection(lines)
    for node, (x, y) in places.items():
        corner = (x + 0.4 - 0.75 * size, tall * y + 0.3 - size / 2)
        if node in thumbnails:
            box = (corner[0], corner[0] + 1.5 * size, corner[1], corner[1] + size)
            axes.imshow(portrait(thumbnails[node]), extent=box, zorder=5)
            name = graph.nodes[node]["name"]
            below = (corner[0], corner[1] - 0.04)
            axes.text(*below, name, va="top", fontsize="xx-small", parse_math=False, zorder=6)
        else:
            index = int(node.split("/")[1])
            box = (x + 0.4 - 0.4, x + 0.4 + 0.4, tall * y - 0.1, tall * y + 0.7)
            axes.imshow(np.asarray(pictures[index]), extent=box, zorder=5)
            axes.text(x + 0.4, tall * y + 0.78, graph.nodes[node]["name"], ha="center", va="bottom")
    for row, block in enumerate(blocks):
        axes.text(-0.3, tall * row + 0.3, block, ha="right", va="center", fontsize="small")
    if frame := _shared_frame(graph, places):
        left, right = frame[0] - 0.12, frame[1] + 0.95
        axes.add_patch(
            Rectangle(
                (left, -0.25), right - left, tall * len(blocks) - 0.35, fill=False, lw=2, ec="0.25"
            )
        )
        axes.text((left + right) / 2, tall * len(blocks) - 0.52, "shared concepts", ha="center")
    axes.set_xlim(-1.0, columns + 0.1)
    axes.set_ylim(-0.35, tall * len(blocks) + 1.1)
    axes.set_aspect("equal")
    axes.set_axis_off()
    bar = figure.colorbar(
        plt.cm.ScalarMappable(Normalize(0, 1), EDGES),
        ax=axes,
        orientation="horizontal",
        fraction=0.025,
        pad=0.01,
        aspect=40,
    )
    bar.set_label("GIG between neighbouring blocks, |value| / largest |value| (dashed: opposes)")
    return figure


def interactive_graph(
    graph: nx.DiGraph, examples: Mapping[str, Sequence[Example]],
    pictures: Mapping[int, np.ndarray | Image.Image], threshold: float = 0.1,
) -> go.Figure:  # fmt: skip
    """Concept graph as a plotly figure: hover a concept for its block, relevance and neighbours.

    Parameters
    ----------
    examples
        Examples of every concept node, the nearest first: it is the node's thumbnail, and all of
        them are on its card.
    pictures
        One picture a class.
    threshold
        Edges with a smaller weight are left out.

    Notes
    -----
    On the book's pages and in :func:`save_html`'s file ``explore_graph.js`` adds the cards, a
    click that follows one concept, and sliders for the threshold and the number of concepts.
    """
    places = _layout(graph)
    nodes, blocks = list(places), graph.graph["blocks"]
    columns = max(x for x, _ in places.values()) + 1
    figure = go.Figure()
    for line, within in _bundles(graph):
        drawn = [(places[a], places[b]) for a, b, weight in within if weight >= threshold]
        ends = [[value for p, q in drawn for value in (p[i], q[i], None)] for i in (0, 1)]
        meta = {"edges": [[nodes.index(a), nodes.index(b), weight] for a, b, weight in within]}
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
    ranks: Counter[tuple[str, str]] = Counter()
    for node, lines in zip(nodes, about, strict=True):
        data = graph.nodes[node]
        row = (data["block"], data.get("group", node))
        strip = [portrait(example, 64) for example in examples.get(node, ())]
        image = strip[0] if strip else pictures[int(node.split("/")[1])]
        place = dict(zip("xy", places[node], strict=True))
        width = 0.9 if strip else 0.8
        figure.add_layout_image(
            source=_data_url(image), xref="x", yref="y", sizex=width, sizey=_TALL,
            xanchor="center", yanchor="middle", layer="above", **place,
        )  # fmt: skip
        card = {"width": width, "height": _TALL, "rank": ranks[row], "title": lines[0]}
        card |= {"lines": lines[1:], "card": _data_url(_side_by_side(strip), 640) if strip else ""}
        cards.append(place | card)
        ranks[row] += 1
        if not strip:
            above = {"x": place["x"], "y": place["y"] + 0.45, "font_color": "black"}
            figure.add_annotation(text=html.escape(lines[0]), showarrow=False, **above)
    if frame := _shared_frame(graph, places):
        label = {"text": "shared concepts", "textposition": "top center", "padding": 2}
        figure.add_shape(
            x0=frame[0] - 0.55, x1=frame[1] + 0.55, y0=-0.45, y1=len(blocks) - 0.35, layer="below",
            line={"width": 1, "color": "grey"}, label=label | {"font": {"color": "black"}},
        )  # fmt: skip
    hint = (
        "Point at a concept, or reach it with the Tab key, to see its card. Click it, or press "
        "Enter, to follow it; Escape shows all again."
    )
    shown = {"nodes": cards, "threshold": threshold, "columns": columns, "hint": hint}
    figure.update_layout(
        showlegend=False, height=110 * (len(blocks) + 1), template="plotly_white",
        margin={"l": 70, "r": 10, "t": 10, "b": 10}, meta={"graph": shown},
        plot_bgcolor="white",  # on a dark page too: the strongest lines are navy
    )  # fmt: skip
    figure.update_xaxes(visible=False, fixedrange=True, range=[-0.6, columns - 0.4])
    figure.update_yaxes(
        tickvals=list(range(len(blocks) + 1)), ticktext=[*blocks, "class"], showgrid=False,
        zeroline=False, fixedrange=True, range=[-0.5, len(blocks) + 0.6],
    )  # fmt: skip
    return figure


def _bundles(graph: nx.DiGraph) -> Iterator[tuple[dict[str, Any], list[tuple[str, str, float]]]]:
    """Edges of like weight and sign, which plotly draws as one line, and that line's style."""
    edges = list(graph.edges(data=True))
    for level in range(_LEVELS):
        low, high = max(level / _LEVELS, _WEAKEST), (level + 1) / _LEVELS
        for oppose in (False, True):
            within = [
                (a, b, d["weight"])
                for a, b, d in edges
                if low < d["weight"] <= high and (d["raw"] < 0) == oppose
            ]
            colour = _OPPOSES if oppose else to_hex(EDGES(high))
            style = {
                "width": 0.5 + 4 * high,
                "color": colour,
                "dash": "dash" if oppose else "solid",
            }
            if within:
                yield style, within


def save_html(figure: go.Figure, path: Path) -> None:
    """Write :func:`interactive_graph`'s figure as one HTML file that needs nothing else.

    The file holds plotly, the pictures and what makes the graph explorable, and opens in any
    browser without internet. It is written atomically.
    """
    script = Path(__file__).with_name("explore_graph.js").read_text(encoding="utf-8")
    script += "\nexploreGraph(document.getElementById('{plot_id}'));"
    text = figure.to_html(include_plotlyjs=True, post_script=script)
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
        for label, value in zip(graph.graph["classes"], data["relevance"], strict=True):
            lines.append(f"relevance for {class_names()[label]}: {value:.3g}")
    for word, edges in (
        ("from", graph.in_edges(node, data=True)),
        ("to", graph.out_edges(node, data=True)),
    ):
        strongest = sorted(edges, key=lambda edge: -abs(edge[2]["raw"]))[:3]
        ends = [f"{a if word == 'from' else b} ({d['raw']:+.3g})" for a, b, d in strongest]
        if ends:
            lines.append(f"{word} {', '.join(ends)}")
    if examples.get(node):
        lines.append(
            f"nearest PFVs from {', '.join(dict.fromkeys(e.picture for e in examples[node]))}"
        )
    return lines


def _side_by_side(strip: Sequence[Image.Image]) -> Image.Image:
    width, height = strip[0].size
    canvas = Image.new("RGB", (len(strip) * (width + 6) - 6, height), "white")
    for i, image in enumerate(strip):
        canvas.paste(image, (i * (width + 6), 0))
    return canvas


def _data_url(image: np.ndarray | Image.Image, size: int = 96) -> str:
    shown = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)
    shown.thumbnail((size, size))
    buffer = io.BytesIO()
    shown.convert("RGB").save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_json(graph: nx.DiGraph, path: Path) -> None:
    """Write a graph (Figure 1) as networkx' node-link JSON, atomically."""
    artifacts.write_json(path, nx.node_link_data(graph, edges="edges"))


def load_json(path: Path) -> nx.DiGraph:
    """Read the graph (Figure 1) that :func:`save_json` wrote."""
    return nx.node_link_graph(json.loads(path.read_text(encoding="utf-8")), edges="edges")


def save_graphml(graph: nx.DiGraph, path: Path) -> None:
    """Write a graph (Figure 1) as GraphML, for Gephi, yEd or Cytoscape, atomically.

    GraphML knows no lists: they are written as JSON strings.
    """
    flat = nx.DiGraph(**{key: json.dumps(value) for key, value in graph.graph.items()})
    for node, data in graph.nodes(data=True):
        flat.add_node(
            node, **{k: json.dumps(v) if isinstance(v, list) else v for k, v in data.items()}
        )
    flat.add_edges_from(graph.edges(data=True))
    artifacts.write_atomically(path, lambda temporary: nx.write_graphml(flat, temporary))

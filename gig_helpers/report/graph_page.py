"""The concept graph to explore: a plotly figure, and one HTML file that opens anywhere."""

import base64
import html
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import plotly.graph_objects as go
from matplotlib.colors import to_hex
from PIL import Image

from ..data import artifacts
from .examples import Example, Illustrated
from .figures import caption, portrait
from .graph_figures import EDGES, OPPOSES, Edge, edges, layout

_WEAKEST = 0.02
"""Edges below this weight are not sent to the page."""

_LEVELS = 6
"""Steps of the edges' width and colour."""

_SIDE = 0.8
"""Side of a node; rows are 1 apart."""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body>{figure}</body></html>
"""


def interactive_graph(shown: Illustrated, threshold: float = 0.3) -> go.Figure:
    """Concept graph as a plotly figure: hover a concept for its block, relevance and neighbours.

    Parameters
    ----------
    shown
        The graph with its pictures, of :func:`gig_helpers.report.examples.illustrate`: a concept's
        first example is its thumbnail, all of them are on its card.
    threshold
        Edges between concepts with a smaller weight are left out.

    Notes
    -----
    On the book's pages and in :func:`save_html`'s file ``explore_graph.js`` adds the cards, a
    click that follows one concept, and sliders for the threshold and the number of concepts.

    Examples
    --------
    One concept of one class, as :func:`.concept_graph` would give it.

    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> about = {"kind": "concept", "block": "layer4.2", "concept": 5, "group": "13"}
    >>> graph.add_node("layer4.2/5", **about, relevance=[2.0], name="beak")
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> graph.add_edge("layer4.2/5", "class/13", raw=2.0, weight=1.0)
    >>> import numpy as np
    >>> black, even = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40))
    >>> shot = Example(black, even, (5, 5, 20), "a/b.png", "junco")
    >>> shown = Illustrated(graph, {"layer4.2/5": [shot]}, {13: Image.new("RGB", (40, 40))})
    >>> figure = interactive_graph(shown)
    >>> for line in figure.data[-1].text[0].split("<br>"):
    ...     print(line)
    layer4.2, concept 5 “beak”
    relevance for junco: 2
    to class/13 (+2)
    nearest PFVs: junco
    """
    graph, figure = shown.graph, go.Figure()
    places, frame = layout(graph)
    nodes, blocks = list(places), graph.graph["blocks"]
    columns = max(x for x, _ in places.values()) + 1
    strong = {edge for sign in edges(graph, threshold) for edge in sign}
    for line, dark, within in _bundles(graph):
        drawn = [(places[e[0]], places[e[1]]) for e in within if e in strong]
        ends = [[value for p, q in drawn for value in (p[i], q[i], None)] for i in (0, 1)]
        ways = [[nodes.index(a), nodes.index(b), weight] for a, b, weight in within]
        meta = {"edges": ways, "colours": [line["color"], dark]}
        common = {"mode": "lines", "line": line, "hoverinfo": "skip"}
        figure.add_scatter(x=ends[0], y=ends[1], meta=meta, **common)
        # Its twin takes the edges that fade when the reader follows one concept.
        figure.add_scatter(x=[], y=[], opacity=0.08, **common)
    cards: list[dict[str, Any]] = []
    ranks: dict[tuple[str, str], Iterator[int]] = defaultdict(itertools.count)
    for node, (x, y) in places.items():
        near, data = shown.examples.get(node, ()), graph.nodes[node]
        card = [[_data_url(portrait(example, 96)), caption(example)] for example in near]
        figure.add_layout_image(
            source=card[0][0] if card else _data_url(shown.faces[int(node.split("/")[1])]),
            x=x, y=y, xref="x", yref="y", sizex=_SIDE, sizey=_SIDE, xanchor="center",
            yanchor="middle", layer="above",
        )  # fmt: skip
        title, *lines = _about(graph, node, near)
        rank = next(ranks[data["block"], data.get("group", node)])
        about = {"side": _SIDE, "rank": rank, "title": title, "lines": lines, "card": card}
        number = str(data["concept"]) if card else ""
        cards.append({"x": x, "y": y, "number": number, **about})
        if not card:
            figure.add_annotation(text=html.escape(title), showarrow=False, x=x, y=y + 0.52)
    figure.add_scatter(
        x=[card["x"] for card in cards], y=[card["y"] for card in cards], mode="markers",
        marker={"size": 44, "symbol": "square", "color": "rgba(255,255,255,0.01)"},
        text=["<br>".join(map(html.escape, [card["title"], *card["lines"]])) for card in cards],
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    if frame:
        # Below the first block, where no line goes.
        label = {"text": "shared concepts", "textposition": "bottom center", "padding": 2}
        figure.add_shape(
            x0=frame[0] - 0.55, x1=frame[1] + 0.55, y0=-0.65, y1=len(blocks) - 0.4, layer="below",
            line={"width": 1, "color": "grey"}, label=label,
        )  # fmt: skip
    legend = [_colours(1.0), _colours(1 / _LEVELS), [OPPOSES, OPPOSES]]
    explored = {"nodes": cards, "threshold": threshold, "columns": columns, "legend": legend}
    figure.update_layout(
        showlegend=False, height=130 * (len(blocks) + 1), template="plotly_white",
        margin={"l": 70, "r": 10, "t": 10, "b": 10}, meta={"graph": explored},
    )  # fmt: skip
    figure.update_xaxes(visible=False, fixedrange=True, range=[-0.6, columns - 0.4])
    figure.update_yaxes(
        tickvals=list(range(len(blocks) + 1)), ticktext=[*blocks, "class"], showgrid=False,
        zeroline=False, fixedrange=True, range=[-0.7, len(blocks) + 0.75],
    )  # fmt: skip
    return figure


def _colours(weight: float) -> list[str]:
    """An edge's colour on a light page and on a dark one."""
    return [to_hex(EDGES(weight)), to_hex(EDGES.reversed()(weight))]


def _bundles(graph: nx.DiGraph) -> Iterator[tuple[dict[str, Any], str, list[Edge]]]:
    """Edges of like weight and sign, one line to plotly: style, colour on dark, edges."""
    for oppose, ways in enumerate(edges(graph, _WEAKEST)):
        for level, within in itertools.groupby(ways, lambda edge: math.ceil(_LEVELS * edge[2])):
            high, dash = level / _LEVELS, "dash" if oppose else "solid"
            light, dark = (OPPOSES, OPPOSES) if oppose else _colours(high)
            yield {"width": 0.5 + 4 * high, "color": light, "dash": dash}, dark, [*within]


def _about(graph: nx.DiGraph, node: str, near: Sequence[Example]) -> list[str]:
    """A node's title and what there is to say of it, as plain text: whoever shows it escapes it."""
    data, lines = graph.nodes[node], []
    if data["kind"] == "class":
        lines.append(data["name"])
    else:
        title = f"{data['block']}, concept {data['concept']} “{data['name']}”"
        lines.append(title.removesuffix(" “”"))
        if made := data.get("photographs"):
            lines.append(f"made of PFVs of {made} photograph{'s' * (made > 1)}")
        for label, value in zip(graph.graph["classes"], data["relevance"], strict=True):
            lines.append(f"relevance for {graph.nodes[f'class/{label}']['name']}: {value:.3g}")
    for word, ways in (("from", graph.pred[node]), ("to", graph.succ[node])):
        if strongest := sorted(ways, key=lambda other: -abs(ways[other]["raw"]))[:3]:
            values = (f"{other} ({ways[other]['raw']:+.3g})" for other in strongest)
            lines.append(f"{word} {', '.join(values)}")
    if captions := dict.fromkeys(map(caption, near)):
        lines.append(f"nearest PFVs: {'; '.join(captions)}")
    return lines


def _data_url(image: Image.Image) -> str:
    # In RGB first: what is transparent would be mixed in as black.
    small = image.convert("RGB")
    small.thumbnail((96, 96))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_html(shown: Illustrated, path: str | Path) -> None:
    """Write :func:`interactive_graph`'s figure as one HTML file that needs nothing else.

    The file holds plotly, the pictures and what makes the graph explorable, and opens in any
    browser without internet. It is written atomically.

    Raises
    ------
    TypeError
        If it is given a graph alone, without its pictures.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> graph = nx.DiGraph(blocks=["layer4.2"], classes=[13])
    >>> graph.add_node("class/13", kind="class", block="class", name="junco")
    >>> with TemporaryDirectory() as here:
    ...     save_html(Illustrated(graph, {}, {13: Image.new("RGB", (40, 40))}), f"{here}/a.html")
    ...     text = (Path(here) / "a.html").read_text(encoding="utf-8")
    >>> "exploreGraph" in text, "<title>Concept graph: junco</title>" in text
    (True, True)
    """
    if not isinstance(shown, Illustrated):
        raise TypeError("save_html draws a graph with its pictures: illustrate(graph, d, pfvs)")
    script = Path(__file__).with_name("explore_graph.js").read_text(encoding="utf-8")
    script += "\nexploreGraph(document.getElementById('{plot_id}'));"
    figure = interactive_graph(shown).to_html(
        include_plotlyjs=True, full_html=False, post_script=script,
        config={"displayModeBar": False},  # one of its buttons offers to upload the figure
    )  # fmt: skip
    names = (shown.graph.nodes[f"class/{label}"]["name"] for label in shown.graph.graph["classes"])
    title = html.escape(f"Concept graph: {' and '.join(names)}")
    page = _PAGE.format(title=title, figure=figure)
    place = Path(path).expanduser()
    artifacts.write_atomically(place, lambda file: file.write_text(page, encoding="utf-8"))

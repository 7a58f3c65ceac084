"""Figures: matplotlib for the page and the printer, plotly to explore. No computation here."""

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullFormatter
from PIL import Image, ImageDraw
from torch import Tensor

from . import artifacts, assets
from .evaluation import Curves, Interval
from .pfv import Example

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

EDGES = plt.get_cmap("plasma_r")
"""Edge colours of a graph: yellow (weak) over purple to navy (strong), as in Figure 1."""

GLOW = LinearSegmentedColormap.from_list("glow", ["black", "#a00000", "#ff5030", "#ffe0c0"])
"""Localisation maps: black to red, as in Figure 1."""

_OPPOSES = "#009E73"

_WEAKEST = 0.02
"""Edges of an interactive graph below this weight are not sent to the page."""

_TALL = 0.62
"""Height of a node in an interactive graph; rows are 1 apart."""


def style() -> None:
    """Set the book's figure style: white ground, Okabe–Ito colours, no box around the axes."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": "medium",
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "font.size": 10,
            "image.cmap": "viridis",
            "legend.frameon": False,
            "savefig.bbox": "tight",
        }
    )


def picture(axes: Axes, image: np.ndarray | Image.Image, title: str = "") -> None:
    """A picture without axes."""
    axes.imshow(np.asarray(image))
    axes.set_title(title)
    axes.set_axis_off()


def heat(axes: Axes, values: Tensor | np.ndarray, title: str = "", signed: bool = False) -> None:
    """A map (H, W) without axes: black to red, or blue to red around zero if ``signed``."""
    array = np.asarray(values)
    # A few pixels carry most of an iERF; the 99.5th percentile keeps the rest visible.
    limit = float(np.percentile(np.abs(array), 99.5)) or 1.0
    if signed:
        axes.imshow(array, cmap="RdBu_r", vmin=-limit, vmax=limit)
    else:
        axes.imshow(array, cmap=GLOW, vmin=0, vmax=limit)
    axes.set_title(title)
    axes.set_axis_off()


def thumbnail(axes: Axes, example: Example, title: str = "") -> None:
    """A crop with its red square, the iERF tile at its upper right (Figure 1's node)."""
    edge = example.crop.shape[0]
    _draw_thumbnail(axes, example, (0, 0), edge)
    axes.set_xlim(0, 1.5 * edge)
    axes.set_ylim(0, edge)
    axes.set_aspect("equal")
    axes.set_title(title, fontsize="small")
    axes.set_axis_off()


def _draw_thumbnail(
    axes: Axes, example: Example, corner: tuple[float, float], size: float, order: int = 5
) -> None:
    """Draw with the lower left corner at ``corner``; the crop is ``size`` wide, the tile half."""
    x, y = corner
    half = size / 2
    axes.imshow(example.crop, extent=(x, x + size, y, y + size), zorder=order)
    axes.imshow(
        _tile(example),
        extent=(x + size, x + size + half, y + half, y + size),
        zorder=order,
    )
    left, top, side = (size * value / example.crop.shape[0] for value in example.square)
    axes.add_patch(
        Rectangle(
            (x + left, y + size - top - side), side, side, fill=False, ec="red", lw=1, zorder=order
        )
    )


def _tile(example: Example) -> np.ndarray:
    """The iERF in viridis, clipped at its 99.5th percentile; RGB, uint8."""
    limit = max(float(np.percentile(example.ierf, 99.5)), 1e-12)
    scaled = np.clip(example.ierf / limit, 0, 1)
    return (255 * plt.get_cmap("viridis")(scaled)[..., :3]).astype(np.uint8)


def cards(rows: Sequence[tuple[str, Sequence[Example]]], columns: int = 5) -> Figure:
    """Concept cards: a title and its nearest examples a row."""
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(1.7 * columns, 1.45 * len(rows)), squeeze=False
    )
    for axes, (_, found) in zip(grid, rows, strict=True):
        for place in axes:
            place.set_axis_off()
        for place, example in zip(axes, found, strict=False):
            thumbnail(place, example)
        axes[0].set_title(" ", loc="left", fontsize="small")
    figure.tight_layout(h_pad=0.4)
    for axes, (title, _) in zip(grid, rows, strict=True):
        # Written last: a title as wide as the row would push the columns apart.
        axes[0].set_title(title, loc="left", fontsize="small")
    return figure


def curves(
    axes: Axes, x: Tensor | np.ndarray, values: Tensor | np.ndarray, label: str, colour: str
) -> None:
    """Mean (S,) of curves (N, S) over pictures, with a band of ± 1.96 standard errors."""
    array = np.asarray(values)
    mean = array.mean(axis=0)
    error = 1.96 * array.std(axis=0, ddof=1) / math.sqrt(len(array)) if len(array) > 1 else 0 * mean
    axes.plot(np.asarray(x), mean, label=label, color=colour)
    axes.fill_between(np.asarray(x), mean - error, mean + error, color=colour, alpha=0.2, lw=0)


def followed(
    image: np.ndarray | Image.Image,
    maps: Sequence[Tensor],
    titles: Sequence[str],
    curves: Curves,
    marks: Sequence[int],
) -> Figure:
    """One picture while concepts are taken out of it: what is left of its evidence, and the curves.

    Parameters
    ----------
    maps
        What is left (H, W) after each of ``marks`` concepts, signed, on one scale.
    titles
        One a map.
    curves
        Of this picture (S,), one step a concept.
    """
    figure = plt.figure(figsize=(1.75 * (len(maps) + 1), 5.2), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.4))
    top, bottom = halves
    strip = top.subplots(1, len(maps) + 1)
    picture(strip[0], image, "picture")
    limit = max(float(m.abs().max()) for m in maps)
    size = np.asarray(image).shape[:2]
    grey = np.asarray(image).mean(axis=2)
    for axes, values, title in zip(strip[1:], maps, titles, strict=True):
        axes.imshow(grey, cmap="gray", alpha=0.6)
        extent = (0, size[1], size[0], 0)
        axes.imshow(
            np.asarray(values), cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.6, extent=extent,
            interpolation="bilinear",
        )  # fmt: skip
        axes.set_title(title, fontsize="small")
        axes.set_axis_off()
    axes = bottom.subplots()
    count = np.arange(len(curves.x))
    for values, label, colour in (
        (curves.insertion, "insertion", COLOURS[0]),
        (curves.deletion, "deletion", COLOURS[1]),
    ):
        axes.plot(count, np.asarray(values), label=label, color=colour)
    axes.plot(marks, np.asarray(curves.deletion)[list(marks)], "o", color=COLOURS[1])
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlim=(0, count[-1]), xlabel="concepts deleted or inserted", ylabel="probability")
    axes.legend()
    return figure


def curve_grid(
    panels: Mapping[str, Mapping[str, Curves]], ylabel: str, xlabel: str = "share of concepts"
) -> Figure:
    """Mean deletion (above) and insertion curves (below) with bands, a column a title.

    Parameters
    ----------
    panels
        Curves (N, S) by label, by title; a label has one colour everywhere.
    """
    labels = list(dict.fromkeys(label for column in panels.values() for label in column))
    figure, grid = plt.subplots(
        2, len(panels), figsize=(max(4.2, 2.15 * len(panels)), 4.8), sharex=True, sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, (title, found) in zip(grid.T, panels.items(), strict=True):
        for label, here in found.items():
            colour = COLOURS[labels.index(label)]
            curves(column[0], here.x, here.deletion, label, colour)
            curves(column[1], here.x, here.insertion, label, colour)
        column[0].set_title(title)
        column[1].set_xlabel(xlabel)
    grid[0, 0].set_ylabel(f"deletion: {ylabel}")
    grid[1, 0].set_ylabel(f"insertion: {ylabel}")
    handles = [Line2D([], [], color=COLOURS[n], label=label) for n, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def intervals(
    axes: Axes, groups: Mapping[str, Mapping[str, Interval]], ylabel: str, zero: bool = False
) -> None:
    """Means with their confidence intervals: a place on the x axis a group, a colour a label."""
    labels = list(dict.fromkeys(label for found in groups.values() for label in found))
    for n, label in enumerate(labels):
        places = [x for x, found in enumerate(groups.values()) if label in found]
        values = [found[label] for found in groups.values() if label in found]
        mean = np.array([v.mean for v in values])
        reach = np.array([[v.mean - v.low for v in values], [v.high - v.mean for v in values]])
        shift = 0.7 * ((n + 0.5) / len(labels) - 0.5)
        axes.errorbar(
            np.array(places) + shift, mean, reach.clip(min=0), fmt="o", color=COLOURS[n],
            label=label, capsize=2, ms=4,
        )  # fmt: skip
    if zero:
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(ylabel)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def tradeoff(
    lines: Mapping[tuple[str, str], Tensor],
    points: Mapping[tuple[str, str], tuple[float, float]] | None = None,
    mark: float | None = None,
) -> Figure:
    """Rel-ℓ2 against non-zero codes.

    Parameters
    ----------
    lines
        ``{(panel, name): (S, 3)}``, columns λ, non-zeros and Rel-ℓ2.
    points
        ``{(panel, name): (non-zeros, Rel-ℓ2)}``, drawn as crosses in the line's colour.
    mark
        A number of non-zeros to draw a dotted line at.
    """
    panels = list(dict.fromkeys(panel for panel, _ in lines))
    names = list(dict.fromkeys(name for _, name in lines))
    figure, grid = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            line = np.asarray(lines[panel, name])
            axes.plot(line[:, 1], line[:, 2], "o-", ms=3, color=colour, label=name)
            if points and (panel, name) in points:
                axes.plot(*points[panel, name], "x", ms=9, mew=2, color=colour)
        if mark:
            axes.axvline(mark, color="0.5", ls=":")
        axes.set(xscale="log", xlabel="non-zero codes a PFV", ylabel="Rel-ℓ2", title=panel)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(bottom=0)
    grid[0, 0].legend(fontsize="small")
    figure.tight_layout()
    return figure


def _layout(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """Classes on top, blocks downwards; left, shared and right groups side by side."""
    classes, blocks = graph.graph["classes"], graph.graph["blocks"]
    groups = (
        [str(classes[0])] if len(classes) == 1 else [str(classes[0]), "shared", str(classes[1])]
    )
    members = {
        (block, group): [
            n for n, d in graph.nodes(data=True) if d["block"] == block and d.get("group") == group
        ]
        for block in blocks
        for group in groups
    }
    places: dict[str, tuple[float, float]] = {}
    start = 0.0
    for group in groups:
        width = max(1, max(len(members[block, group]) for block in blocks))
        for row, block in enumerate(blocks):
            nodes = members[block, group]
            # Shared concepts stay centred in their frame, the others fill from the left.
            offset = (width - len(nodes)) / 2
            for column, node in enumerate(nodes):
                places[node] = (start + offset + column, float(row))
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
    graph: nx.DiGraph,
    thumbnails: Mapping[str, Example],
    pictures: Mapping[int, np.ndarray | Image.Image],
    threshold: float = 0.05,
) -> Figure:
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
            (a, b, d["weight"])
            for a, b, d in edges
            if d["weight"] >= threshold and (d["raw"] < 0) == oppose
        ]
        if not drawn:
            continue
        weights = np.array([weight for *_, weight in drawn])
        axes.add_collection(
            LineCollection(
                [(centre[a], centre[b]) for a, b, _ in drawn],
                linewidths=0.3 + (1.2 if oppose else 2.8) * weights,
                colors=[_OPPOSES] * len(drawn) if oppose else EDGES(weights),
                linestyles="dashed" if oppose else "solid",
                alpha=0.6 if oppose else 0.9,
                zorder=2,
            )
        )
    for node, (x, y) in places.items():
        corner = (x + 0.4 - 0.75 * size, tall * y + 0.3 - size / 2)
        if node in thumbnails:
            _draw_thumbnail(axes, thumbnails[node], corner, size)
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
    graph: nx.DiGraph,
    examples: Mapping[str, Sequence[Example]],
    pictures: Mapping[int, np.ndarray | Image.Image],
    threshold: float = 0.1,
) -> go.Figure:
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
    nodes = list(places)
    index = {node: i for i, node in enumerate(nodes)}
    edges = [(a, b, d["weight"], d["raw"]) for a, b, d in graph.edges(data=True)]
    figure = go.Figure()
    steps = 6
    for level in range(steps):
        for oppose in (False, True):
            low, high = max(level / steps, _WEAKEST), (level + 1) / steps
            within = [e for e in edges if low < e[2] <= high and (e[3] < 0) == oppose]
            if not within:
                continue
            drawn = [(places[a], places[b]) for a, b, weight, _ in within if weight >= threshold]
            red, green, blue = (round(255 * part) for part in EDGES(high)[:3])
            line = {
                "width": 0.5 + 4 * high,
                "color": _OPPOSES if oppose else f"rgb({red},{green},{blue})",
                "dash": "dash" if oppose else "solid",
            }
            figure.add_scatter(
                x=[x for start, end in drawn for x in (start[0], end[0], None)],
                y=[y for start, end in drawn for y in (start[1], end[1], None)],
                mode="lines",
                line=line,
                hoverinfo="skip",
                meta={"edges": [[index[a], index[b], w] for a, b, w, _ in within]},
            )
            # Its twin takes the edges that fade when the reader follows one concept.
            figure.add_scatter(x=[], y=[], mode="lines", line=line, opacity=0.08, hoverinfo="skip")
    about = [_about(graph, node, examples) for node in nodes]
    figure.add_scatter(
        x=[places[node][0] for node in nodes],
        y=[places[node][1] for node in nodes],
        mode="markers",
        marker={"size": 44, "symbol": "square", "color": "rgba(255,255,255,0.01)"},
        text=["<br>".join(map(html.escape, lines)) for lines in about],
        hovertemplate="%{text}<extra></extra>",
    )
    cards = []
    ranks: Counter[tuple[str, str]] = Counter()
    for node, lines in zip(nodes, about, strict=True):
        data = graph.nodes[node]
        row = (data["block"], data.get("group", node))
        found = examples.get(node, ())
        strip = [_flat_thumbnail(example) for example in found]
        image = strip[0] if strip else pictures[int(node.split("/")[1])]
        width = 0.9 if strip else 0.8
        x, y = places[node]
        figure.add_layout_image(
            source=_data_url(image),
            x=x,
            y=y,
            xref="x",
            yref="y",
            sizex=width,
            sizey=_TALL,
            xanchor="center",
            yanchor="middle",
            layer="above",
        )
        cards.append(
            {
                "x": x,
                "y": y,
                "width": width,
                "height": _TALL,
                "rank": ranks[row],
                "title": lines[0],
                "lines": lines[1:],
                "card": _data_url(_side_by_side(strip), 640) if strip else "",
            }
        )
        ranks[row] += 1
        if not strip:
            figure.add_annotation(
                text=html.escape(lines[0]), x=x, y=y + 0.45, showarrow=False, font_color="black"
            )
    blocks = graph.graph["blocks"]
    columns = max(x for x, _ in places.values()) + 1
    if frame := _shared_frame(graph, places):
        figure.add_shape(
            x0=frame[0] - 0.55,
            x1=frame[1] + 0.55,
            y0=-0.45,
            y1=len(blocks) - 0.35,
            line={"width": 1, "color": "grey"},
            label={
                "text": "shared concepts",
                "textposition": "top center",
                "padding": 2,
                "font": {"color": "black"},
            },
            layer="below",
        )
    figure.update_layout(
        showlegend=False,
        height=110 * (len(blocks) + 1),
        margin={"l": 70, "r": 10, "t": 10, "b": 10},
        template="plotly_white",
        plot_bgcolor="white",  # on a dark page too: the strongest lines are navy
        meta={
            "graph": {
                "nodes": cards,
                "threshold": threshold,
                "columns": columns,
                "hint": "Point at a concept, or reach it with the Tab key, to see its card. Click "
                "it, or press Enter, to follow it; Escape shows all again.",
            }
        },
    )
    figure.update_xaxes(visible=False, fixedrange=True, range=[-0.6, columns - 0.4])
    figure.update_yaxes(
        tickvals=list(range(len(blocks) + 1)),
        ticktext=[*blocks, "class"],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        range=[-0.5, len(blocks) + 0.6],
    )
    return figure


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
            lines.append(f"relevance for {assets.class_names()[label]}: {value:.3g}")
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


def _flat_thumbnail(example: Example, size: int = 64) -> Image.Image:
    """A crop with its red square and the iERF tile, as pixels (size, 1.5 · size)."""
    canvas = Image.new("RGB", (size + size // 2, size), "white")
    canvas.paste(Image.fromarray(example.crop).resize((size, size)), (0, 0))
    canvas.paste(Image.fromarray(_tile(example)).resize((size // 2, size // 2)), (size, 0))
    left, top, side = (size * value / example.crop.shape[0] for value in example.square)
    ImageDraw.Draw(canvas).rectangle((left, top, left + side - 1, top + side - 1), outline="red")
    return canvas


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

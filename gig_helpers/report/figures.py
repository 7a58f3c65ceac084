"""Figures with matplotlib, for the page and the printer. No computation here."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.core.pylabtools import print_figure
from IPython.display import HTML
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from pandas.io.formats.style import Styler
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from torch import Tensor

from ..curves import Curves
from .examples import Example
from .statistics import Comparison, Interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

GLOW = LinearSegmentedColormap.from_list("glow", ["black", "#a00000", "#ff5030", "#ffe0c0"])
"""Localisation maps: black to red, as in Figure 1."""


def style() -> None:
    """Set the book's figure style: white ground, Okabe–Ito colours, no box around the axes.

    Examples
    --------
    >>> with plt.rc_context():
    ...     style()
    ...     plt.rcParams["axes.spines.top"], plt.rcParams["axes.prop_cycle"].by_key()["color"][0]
    (False, '#0072B2')
    """
    plt.rc("axes", prop_cycle=plt.cycler(color=COLOURS), titlesize="medium")
    plt.rc("axes.spines", right=False, top=False)
    plt.rc("figure", dpi=110, facecolor="white")
    plt.rc("legend", frameon=False)
    plt.rc("savefig", bbox="tight")


def picture(axes: Axes, image: np.ndarray | Image.Image, title: str = "", **options: Any) -> None:
    """A picture without axes; the options are those of matplotlib's ``imshow``.

    Examples
    --------
    >>> figure, axes = plt.subplots()
    >>> picture(axes, np.zeros((8, 12, 3), np.uint8), "all black")
    >>> axes.images[0].get_size(), axes.get_title(), axes.axison
    ((8, 12), 'all black', False)
    >>> plt.close(figure)
    """
    axes.imshow(np.asarray(image), **options)
    axes.set_title(title)
    axes.set_axis_off()


def heat(axes: Axes, values: Tensor | np.ndarray, title: str = "", signed: bool = False) -> None:
    """A map (H, W) without axes: black to red, or blue to red around zero if ``signed``.

    Examples
    --------
    >>> figure, (left, right) = plt.subplots(1, 2)
    >>> values = np.array([[2.0, -2.0]])
    >>> heat(left, values), heat(right, values, signed=True)
    (None, None)
    >>> left.images[0].get_clim(), right.images[0].get_clim()
    ((0.0, 2.0), (-2.0, 2.0))
    >>> plt.close(figure)
    """
    array = np.asarray(values)
    # A few pixels carry most of an iERF; the 99.5th percentile keeps the rest visible.
    limit = float(np.percentile(np.abs(array), 99.5)) or 1.0
    low, colours = (-limit, "RdBu_r") if signed else (0.0, GLOW)
    picture(axes, array, title, cmap=colours, vmin=low, vmax=limit)


def located(
    axes: Axes, image: Image.Image, values: Tensor | np.ndarray, title: str = "",
    limit: float | None = None,
) -> AxesImage:  # fmt: skip
    """A signed map (H, W) of any size laid over its picture in grey; for a colour bar, the map.

    Red brings, blue takes; where the map is zero the picture is bare.

    Parameters
    ----------
    limit
        Value at which the colours are full; by default the map's 99.5th percentile.

    Examples
    --------
    >>> figure, axes = plt.subplots()
    >>> drawn = located(axes, Image.new("RGB", (8, 8)), np.array([[2.0, -1.0]]), "beak", limit=2.0)
    >>> axes.get_title(), drawn.get_alpha().tolist(), drawn.get_clim()
    ('beak', [[0.9, 0.45]], (-2.0, 2.0))
    >>> plt.close(figure)
    """
    array = np.asarray(values, dtype=float)
    limit = limit or float(np.percentile(np.abs(array), 99.5)) or 1.0
    faded = Image.blend(image.convert("L"), Image.new("L", image.size, 235), 0.4)
    picture(axes, faded, title, cmap="gray", vmin=0, vmax=255)
    alpha = 0.9 * np.clip(abs(array) / limit, 0, 1)
    extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
    return axes.imshow(array, "RdBu_r", alpha=alpha, vmin=-limit, vmax=limit, extent=extent)


def portrait(example: Example, size: int = 160) -> Image.Image:
    """A crop in colour where its PFV looks, grey elsewhere, with the red square; (size, size).

    It is a node of Figure 1, whose separate iERF tile is here laid over the crop, smoothed and
    clipped at its 99th percentile.

    Examples
    --------
    >>> green, looks = np.full((40, 40, 3), (0, 90, 0), np.uint8), np.zeros((40, 40))
    >>> looks[10:20, 10:20] = 1
    >>> node = portrait(Example(green, looks, (5, 5, 20), "a.png", "junco"), size=80)
    >>> [node.getpixel(place) for place in ((10, 10), (30, 30), (70, 70))]  # square, seen, unseen
    [(255, 0, 0), (0, 90, 0), (132, 132, 132)]
    """
    edge = len(example.crop)
    seen = gaussian_filter(np.clip(np.asarray(example.ierf, float), 0, None), edge / 16)
    share = np.clip(seen / max(float(np.percentile(seen, 99)), 1e-12), 0, 1)[..., None] ** 0.5
    faded = (example.crop.mean(axis=2, keepdims=True) + 235) / 2
    mixed = share * example.crop + (1 - share) * faded
    drawn = Image.fromarray(mixed.astype(np.uint8)).resize((size, size))
    left, top, side = (size * value / edge for value in example.square)
    frame = (left, top, left + side - 1, top + side - 1)
    ImageDraw.Draw(drawn).rectangle(frame, outline="red", width=max(1, size // 80))
    return drawn


def caption(example: Example) -> str:
    """What stands by a :func:`portrait`: the class, or where there is none the photograph's name.

    Examples
    --------
    >>> crop, ierf = np.zeros((40, 40, 3), np.uint8), np.ones((40, 40))
    >>> caption(Example(crop, ierf, (5, 5, 20), "a/b.png", "junco"))
    'junco'
    >>> caption(Example(crop, ierf, (5, 5, 20), "a/b.png", None))
    'b'
    """
    return example.label or Path(example.picture).stem[-22:]


def thumbnail(axes: Axes, example: Example, title: str = "") -> None:
    """A :func:`portrait` without axes; its :func:`caption` below.

    Examples
    --------
    >>> shot = Example(
    ...     np.zeros((40, 40, 3), np.uint8), np.ones((40, 40)), (5, 5, 20), "a/b.png", "junco"
    ... )
    >>> figure, axes = plt.subplots()
    >>> thumbnail(axes, shot, "a concept")
    >>> axes.images[0].get_size(), axes.get_title(), axes.texts[0].get_text()
    ((160, 160), 'a concept', 'junco')
    >>> plt.close(figure)
    """
    picture(axes, portrait(example))
    axes.set_title(title, fontsize="small")
    below: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": "x-small"}
    axes.text(0.5, -0.03, caption(example), parse_math=False, transform=axes.transAxes, **below)


def cards(rows: Sequence[tuple[str, Sequence[Example]]], columns: int = 5) -> Figure:
    """Concept cards: rows of a title and its nearest examples.

    Examples
    --------
    >>> shot = Example(
    ...     np.zeros((40, 40, 3), np.uint8), np.ones((40, 40)), (5, 5, 20), "a.png", "junco"
    ... )
    >>> figure = cards([("concept 7", [shot, shot]), ("concept 9", [shot])], columns=2)
    >>> [(axes.get_title(loc="left"), len(axes.images)) for axes in figure.axes]
    [('concept 7', 1), ('', 1), ('concept 9', 1), ('', 0)]
    >>> plt.close(figure)
    """
    size = (1.7 * columns, 2.2 * len(rows))
    figure, grid = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    for place in grid.flat:
        place.set_axis_off()
    for axes, (_, shots) in zip(grid, rows, strict=True):
        for place, example in zip(axes, shots, strict=False):
            thumbnail(place, example)
        axes[0].set_title(" ", loc="left", fontsize="small")
    figure.tight_layout(h_pad=0.4)
    for axes, (title, _) in zip(grid, rows, strict=True):
        # Written last: a title as wide as the row would push the columns apart.
        axes[0].set_title(title, loc="left", fontsize="small")
    return figure


def curve_grid(panels: Mapping[str, Mapping[str, Curves]], ylabel: str) -> Figure:
    """Deletion (above) and insertion curves (below), a column a title: means, and each picture's.

    Thin lines are pictures, their dots the states that were run. The x axis is logarithmic but
    for its first hundredth, where most of the early blocks' curves bend.

    Parameters
    ----------
    panels
        Curves (N, S) by label, by title; a label has one colour everywhere.

    Examples
    --------
    >>> import torch
    >>> from gig_helpers.curves import Curve
    >>> line = torch.tensor([0.0, 0.5, 1.0])
    >>> falls, rises = (Curve(line[None], y[None], torch.zeros(1)) for y in (1 - line, line))
    >>> both = Curves(falls, rises)
    >>> figure = curve_grid({"layer3.0": {"GIG": both}, "layer4.2": {"GIG": both}}, "logit")
    >>> [axes.get_title() or axes.get_xlabel() for axes in figure.axes]
    ['layer3.0', 'layer4.2', 'share of concepts', 'share of concepts']
    >>> plt.close(figure)
    """
    labels = list(dict.fromkeys(label for column in panels.values() for label in column))
    figure, grid = plt.subplots(
        2, len(panels), figsize=(max(4.2, 2.15 * len(panels)), 4.8), sharex=True, sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for column, (title, panel) in zip(grid.T, panels.items(), strict=True):
        for label, both in panel.items():
            colour = COLOURS[labels.index(label)]
            for axes, each in zip(column, (both.deletion, both.insertion), strict=True):
                thin = {"color": colour, "alpha": 0.2, "lw": 0.6, "marker": ".", "ms": 2}
                axes.plot(each.x.T, each.y.T, **thin)
                mean = each.mean(0)
                axes.plot(mean.x, mean.y, label=label, color=colour)
        column[0].set_title(title)
        column[1].set_xscale("symlog", linthresh=0.01)
        column[1].set(xlabel="share of concepts", xlim=(0, 1))
        column[1].set_xticks([0, 0.01, 0.1, 1], ["0", ".01", ".1", "1"], minor=False)
    grid[0, 0].set_ylabel(f"deletion: {ylabel}")
    grid[1, 0].set_ylabel(f"insertion: {ylabel}")
    handles = [Line2D([], [], color=COLOURS[n], label=label) for n, label in enumerate(labels)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def intervals(
    axes: Axes, groups: Mapping[str, Mapping[str, Interval]], ylabel: str, zero: bool = False
) -> None:
    """Means with their confidence intervals: a place on the x axis a group, a colour a label.

    Examples
    --------
    >>> figure, axes = plt.subplots()
    >>> groups = {"layer3.0": {"GIG": Interval(1.0, 0.5, 2.0)}, "layer4.2": {}}
    >>> intervals(axes, groups, "gain", zero=True)
    >>> [label.get_text() for label in axes.get_xticklabels()]
    ['layer3.0', 'layer4.2']
    >>> axes.containers[0][2][0].get_segments()[0][:, 1].tolist()  # from low to high
    [0.5, 2.0]
    >>> plt.close(figure)
    """
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    for n, label in enumerate(labels):
        means = {x: group[label] for x, group in enumerate(groups.values()) if label in group}
        low, mean, high = np.array([(v.low, v.mean, v.high) for v in means.values()]).T
        reach = np.array([mean - low, high - mean]).clip(min=0)
        x = np.array([*means]) + 0.7 * ((n + 0.5) / len(labels) - 0.5)
        axes.errorbar(x, mean, reach, fmt="o", color=COLOURS[n], label=label, capsize=2, ms=4)
    if zero:
        axes.axhline(0, color="0.6", lw=0.8, zorder=0)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel(ylabel)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def heat_map(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]]
) -> None:
    """Numbers up to 1 in coloured squares, a row of each method, a column of each place; NaN: none.

    Examples
    --------
    >>> figure, axes = plt.subplots()
    >>> heat_map(axes, ["GIG", "random"], ["layer3.5"], [[0.75], [0.5]])
    >>> [text.get_text() for text in axes.texts]
    ['.75', '.50']
    >>> plt.close(figure)
    """
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(np.asarray(values)):
        ink = "white" if value > 0.6 else "black"
        text = "" if np.isnan(value) else f"{value:.2f}".replace("0.", ".")
        axes.text(x, y, text, ha="center", va="center", color=ink, fontsize="small")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)


_TINTS = {
    "better": "background-color: #b7dcf0; color: black",
    "worse": "background-color: #f6c7a6; color: black",
}


def verdicts(tests: Mapping[str, Mapping[str, Comparison]]) -> Styler:
    """Paired differences as a table, a row of each rival, a column of each block.

    Blue: better; orange: worse; in brackets: not decided; –: not compared.

    Examples
    --------
    >>> won, open_ = Comparison(0.5, 0.1, 0.9, 0.02), Comparison(-0.5, -1.1, 0.1, 0.2)
    >>> rivals = {"SAE": {"layer3.5": won, "layer4.2": open_}, "k-means": {"layer3.5": won}}
    >>> table = verdicts(rivals)
    >>> table.data.to_numpy().tolist(), table.to_html().count("#b7dcf0")
    ([['+0.500', '(-0.500)'], ['+0.500', nan]], 1)
    """
    frame = pd.DataFrame(tests).T
    shown = frame.map(
        lambda test: f"{test.mean:+.3f}" if test.verdict in _TINTS else f"({test.mean:+.3f})",
        na_action="ignore",
    )
    looks = frame.map(lambda test: _TINTS.get(test.verdict, ""), na_action="ignore").fillna("")
    return shown.style.apply(lambda _: looks, axis=None).format(na_rep="–")


_TURN = (
    "const all = this.closest('figure').querySelectorAll('img'), name = all[this.value].alt; "
    "all.forEach((page, n) => { page.hidden = n != this.value; }); "
    "this.nextElementSibling.value = name; this.setAttribute('aria-valuetext', name);"
)


def flipbook(frames: Mapping[str, Figure], title: str) -> HTML:
    """Figures behind a slider that needs no kernel; they are closed.

    Parameters
    ----------
    frames
        Figures by name, in the slider's order; the name is shown beside it.
    title
        What the slider chooses.

    Raises
    ------
    ValueError
        If there is no figure.

    Examples
    --------
    >>> frames = {f"α = {share}": plt.subplots()[0] for share in (0, 1)}
    >>> book = flipbook(frames, "place on the path")
    >>> book.data.count("<img"), book.data.count(" hidden"), plt.get_fignums()
    (2, 1, [])
    """
    if not frames:
        raise ValueError("a flipbook needs a figure at least")
    pages: list[str] = []
    for name, figure in frames.items():
        source = print_figure(figure, "webp", base64=True)
        plt.close(figure)
        rest = " hidden" if pages else ""
        pages.append(f'<img alt="{html.escape(name)}" src="data:image/webp;base64,{source}"{rest}>')
    first = html.escape(next(iter(frames)))
    return HTML(
        f'<figure class="flipbook"><label>{html.escape(title)} '
        f'<input type="range" min="0" max="{len(pages) - 1}" value="0" oninput="{_TURN}"'
        f' aria-valuetext="{first}"> <output>{first}</output></label>{"".join(pages)}</figure>'
    )

"""Shows plotly's figures on the pages; MyST-NB has no renderer for the output they leave.

Each figure is a ``div`` that holds the figure's JSON; one script for the whole book,
``plotly_figure.js``, loads the one shared plotly.min.js where a page has such a figure.
"""

import html
import json
from collections.abc import Sequence
from typing import ClassVar

from docutils import nodes
from myst_nb.core.render import MimeData, MimeRenderPlugin, NbElementRenderer

MIME = "application/vnd.plotly.v1+json"
DEFAULT_HEIGHT = 450
"""Pixels; plotly's own default, taken up before the script runs so that the page does not jump."""


class PlotlyFigure(MimeRenderPlugin):
    """The entry point of ``myst_nb.mime_renderers``."""

    mime_priority_overrides: ClassVar[Sequence[tuple[str, str, int | None]]] = [("html", MIME, 0)]

    @staticmethod
    def handle_mime(
        renderer: NbElementRenderer, data: MimeData, inline: bool
    ) -> list[nodes.Element] | None:
        """Turn a plotly output into HTML; leave every other output to MyST-NB."""
        if inline or data.mime_type != MIME:
            return None
        figure = data.content if isinstance(data.content, dict) else json.loads(data.string)
        alt = data.cell_metadata.get("mystnb", {}).get("image", {}).get("alt", "Interactive figure")
        height = figure.get("layout", {}).get("height", DEFAULT_HEIGHT)
        # "<" is the one character that could end the script element early.
        content = json.dumps({"data": figure["data"], "layout": figure["layout"]})
        content = content.replace("<", "\\u003c")
        if "graph" in figure["layout"].get("meta", {}):
            renderer.add_js_file("explore_graph", "../vendor/explore_graph.js", {"defer": "defer"})
        renderer.add_js_file("plotly_figure", "../vendor/plotly_figure.js", {"defer": "defer"})
        text = (
            f'<div class="plotly-figure" role="figure" aria-label="{html.escape(alt)}" '
            f'style="height:{height}px"><script type="application/json">{content}</script></div>'
        )
        return [nodes.raw(text=text, format="html", classes=["output"])]

"""The concept graph's figures and files: what is drawn is what was given, names do no harm."""

import itertools
import json

import networkx as nx
import numpy as np
import pytest
from conftest import random_decomposition, random_network
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from PIL import Image

from gig_helpers import concept_graph
from gig_helpers.report import graph_figures, graph_files, graph_page
from gig_helpers.report.examples import Example, Illustrated

BLOCKS = ("layer2.0", "layer3.1", "layer4.1")
CLASSES = [12, 12, 13]


@pytest.fixture(scope="module")
def d():
    """Three pictures in twelve random concepts per block of a small random network."""
    return random_decomposition(
        random_network("resnet18"), dict(zip(BLOCKS, (8, 4, 2), strict=True)), 3
    )


@pytest.fixture(scope="module")
def pair(d):
    return concept_graph(d, CLASSES, top=3, shared=2, points=16)


def test_files_keep_everything(pair, tmp_path, monkeypatch):
    graph_files.save_json(pair, str(tmp_path / "graph.json"))
    assert nx.utils.graphs_equal(graph_files.load_json(tmp_path / "graph.json"), pair)
    monkeypatch.setenv("HOME", str(tmp_path))
    graph_files.save_graphml(pair, "~/graph.graphml")
    read = nx.read_graphml(tmp_path / "graph.graphml")
    assert set(read) == set(pair)
    for source, target, data in pair.edges(data=True):
        assert read.edges[source, target]["raw"] == pytest.approx(data["raw"])
    node = next(n for n, d in pair.nodes(data=True) if d["kind"] == "concept")
    assert json.loads(read.nodes[node]["relevance"]) == pair.nodes[node]["relevance"]
    for name in ("blocks", "classes", "labels", "held"):
        assert json.loads(read.graph[name]) == pair.graph[name]


def by_hand():
    """Two classes, one block; concepts 1 and 2 of the first, 3 shared, 4 of the second."""
    graph = nx.DiGraph(blocks=["b"], classes=[12, 13])
    for q, group in enumerate(["12", "12", "shared", "13"], start=1):
        about = {"kind": "concept", "block": "b", "concept": q, "group": group}
        graph.add_node(f"b/{q}", **about, relevance=[1.0, 2.0], name="", photographs=q)
    for label in (12, 13):
        graph.add_node(f"class/{label}", kind="class", block="class", name=f"class {label}")
    ways = {(1, 12): 1.0, (2, 12): -4.0, (3, 12): 0.0, (3, 13): -2.0, (4, 13): 0.5}
    for (q, label), raw in ways.items():
        graph.add_edge(f"b/{q}", f"class/{label}", raw=raw, weight=abs(raw) / 4)
    return graph


def test_groups_stand_side_by_side_with_what_is_shared_between_them():
    places, frame = graph_figures.layout(by_hand())
    assert {node: (round(x, 6), y) for node, (x, y) in places.items()} == {
        "b/1": (0, 0), "b/2": (1, 0), "class/12": (0.5, 1), "b/3": (2.35, 0),
        "b/4": (3.7, 0), "class/13": (3.7, 1),
    }  # fmt: skip
    assert frame == (2.35, 2.35)


def test_edges_are_drawn_from_the_threshold_on_by_their_sign():
    graph = by_hand()
    graph.add_edge("b/1", "b/4", raw=1.0, weight=0.25)
    graph.add_edge("b/2", "b/4", raw=-0.8, weight=0.2)
    to_classes = [("b/4", "class/13", 0.125), ("b/1", "class/12", 0.25)]
    against = [("b/3", "class/13", 0.5), ("b/2", "class/12", 1.0)]
    assert graph_figures.edges(graph, 0.25) == ([*to_classes, ("b/1", "b/4", 0.25)], against)
    assert graph_figures.edges(graph, 0.26) == (to_classes, against)
    always = graph_figures.edges(graph, 0.26, always=[("b/2", "b/4")])
    assert always == (to_classes, [("b/2", "b/4", 0.2), *against])
    assert graph_figures.strongest_line(graph, "class/12") == ["b/1", "class/12"]


def test_lines_are_as_wide_as_edges_are_strong_and_a_star_is_one_photograph():
    graph = by_hand()
    figure = graph_figures.still_graph(_shown(graph), threshold=0.25)
    axes = figure.axes[0]
    supports, against = (c for c in axes.collections if isinstance(c, LineCollection))
    assert [*supports.get_linewidths()] == pytest.approx([0.3 + 2.8 * w for w in (0.125, 0.25)])
    assert [*against.get_linewidths()] == pytest.approx([0.3 + 1.2 * w for w in (0.5, 1)])
    names = [text.get_text().strip() for text in axes.texts]
    assert names[:6] == ["1*", "2", "class 12", "3", "4", "class 13"]
    plt.close(figure)


def test_a_card_lists_the_strongest_of_either_sign_and_ranks_are_of_a_group():
    graph = by_hand()
    for q, raw in ((1, 3.0), (2, -5.0), (3, 0.5), (5, -4.0)):
        graph.add_edge(f"a/{q}", "b/1", raw=raw, weight=0.0)
    lines = graph_page._about(graph, "b/1", ())
    assert "from a/2 (-5), a/5 (-4), a/1 (+3)" in lines and "to class/12 (+1)" in lines
    assert "relevance for class 12: 1" in lines and "relevance for class 13: 2" in lines
    nodes = graph_page.interactive_graph(_shown(by_hand())).layout.meta["graph"]["nodes"]
    ranks = {node["number"] or node["title"]: node["rank"] for node in nodes}
    assert ranks == {"1": 0, "2": 1, "3": 0, "4": 0, "class 12": 0, "class 13": 0}


def _shown(graph, label="junco"):
    """The graph with an example of noise for each concept."""
    generator = np.random.default_rng(0)
    examples = {
        node: [
            Example(
                generator.integers(0, 255, (40, 40, 3), dtype=np.uint8),
                generator.random((40, 40)),
                (10, 10, 20),
                "junco/a.jpg",
                label,
            )
        ]
        for node, data in graph.nodes(data=True)
        if data["kind"] == "concept"
    }
    return Illustrated(graph, examples, dict.fromkeys((12, 13), Image.new("RGB", (8, 8))))


def _strong(graph, threshold):
    """Edges that a figure draws: those to a class whatever their weight, but for nothing."""
    edges = graph.edges(data="weight")
    return [(a, b) for a, b, w in edges if w >= threshold or (b.startswith("class/") and w > 0)]


def test_the_page_has_a_title_and_a_language_and_asks_for_pictures(pair, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (tmp_path / "a.html", str(tmp_path / "b.html"), "~/c.html"):
        graph_page.save_html(_shown(pair), place)
    written = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.glob("*.html"))]
    assert len(written) == 3
    for page in written:
        assert page.startswith('<!doctype html>\n<html lang="en">')
        assert "<title>Concept graph: class 12 and class 13</title>" in page
    with pytest.raises(TypeError, match="illustrate"):
        graph_page.save_html(pair, tmp_path / "graph.html")


def test_the_strongest_line_begins_at_a_first_block(pair):
    line = graph_figures.strongest_line(pair, "class/12")
    assert [node.partition("/")[0] for node in line] == [*BLOCKS, "class"]
    for low, high in itertools.pairwise(line):
        most = max(raw for *_, raw in pair.in_edges(high, data="raw"))
        assert pair.edges[low, high]["raw"] == most


def test_a_graph_of_one_class_lies_on_its_side_with_its_path_in_orange(d):
    graph = concept_graph(d, [12, 12, 12], top=2, points=2)
    path = graph_figures.strongest_line(graph, "class/12")[-3:]
    figure = graph_figures.still_graph(_shown(graph), 2.0, path)
    axes, orange = figure.axes[0], graph_figures._PATH
    columns = {round(image.get_extent()[0], 3) for image in axes.images}
    assert len(columns) == len(BLOCKS) + 1
    assert sum(to_hex(patch.get_edgecolor()).upper() == orange for patch in axes.patches) == 3
    assert [len(line.get_xdata()) for line in axes.lines if line.get_color() == orange] == [3]
    # No edge between concepts is as strong as 2: only the path's is drawn, and those to the class.
    drawn = sum(len(lines.get_segments()) for lines in axes.collections)
    assert drawn == 1 + sum(b == "class/12" for _, b in _strong(graph, 2.0))
    plt.close(figure)


def test_still_figure_draws_every_edge_above_the_threshold(pair):
    named = pair.copy()
    concept, other, *_ = (n for n, d in named.nodes(data=True) if d["kind"] == "concept")
    named.nodes[concept]["name"] = "$_x"  # a reader's name, not a formula
    named.nodes[other]["name"] = "what no tile is wide enough for"
    figure = graph_figures.still_graph(_shown(named), threshold=0.2)
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any(text.endswith(" $_x") for text in texts)
    (cut,) = (text for text in texts if " what " in text)
    assert cut.endswith(" …") and len(cut) <= 17
    drawn = sum(
        len(c.get_segments()) for c in figure.axes[0].collections if isinstance(c, LineCollection)
    )
    assert drawn == len(_strong(pair, 0.2))
    images = len(figure.axes[0].images)
    assert images == sum(d["kind"] == "concept" for _, d in pair.nodes(data=True)) + 2
    plt.close(figure)


def test_a_graph_without_pictures_names_what_concepts_are_made_of(pair):
    graph = pair.copy()
    concepts = [d for _, d in graph.nodes(data=True) if d["kind"] == "concept"]
    for data in concepts:
        data |= {"photographs": 4, "classes": {"gull": 1, "junco": 1}}
    concepts[0] |= {"classes": {"$_x": 2, "junco": 2}}  # half of them suffice
    concepts[1] |= {"photographs": 5, "classes": {"gull": 2, "junco": 2}}
    figure, axes = plt.subplots()
    graph_figures.named_graph(axes, graph, threshold=0.2)
    figure.canvas.draw()
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("$_x") == texts.count("of 5") == 1
    assert texts.count("of 4") == len(concepts) - 2
    drawn = sum(len(c.get_segments()) for c in axes.collections)
    assert drawn == len(_strong(graph, 0.2))
    tiles = {to_hex(patch.get_facecolor()).upper() for patch in axes.patches if patch.get_fill()}
    assert {*graph_figures._TILES} < tiles and len(tiles) == 3, "two classes and what they share"
    plt.close(figure)


def test_names_are_escaped(d):
    evil = "<img src=x onerror=alert(1)>"
    graph = concept_graph(d, CLASSES, top=2, shared=1)
    node = next(n for n, data in graph.nodes(data=True) if data["kind"] == "concept")
    named = concept_graph(d, CLASSES, top=2, shared=1, names={node: evil})
    assert named.nodes[node]["name"] == evil
    figure = graph_page.interactive_graph(_shown(named, evil))
    # What plotly reads as HTML. The cards' texts are plain; the exported page's test shows them.
    shown = [*figure.data[-1].text, *(note.text for note in figure.layout.annotations)]
    assert sum("&lt;img" in text for text in shown) >= 2  # the named one, and every class's name
    assert not any("<img" in text for text in shown)


def test_exported_page_follows_a_concept(pair, browser, tmp_path):
    """The one HTML file, in a browser without internet, against networkx on the same graph."""
    evil = "<img src=x onerror=alert(1)>"
    graph = pair.copy()
    first = next(n for n, d in graph.nodes(data=True) if d["block"] == BLOCKS[1])
    graph.nodes[first]["name"] = evil
    graph.nodes["class/13"]["name"] = "</title>"
    graph_page.save_html(_shown(graph, evil), tmp_path / "graph.html")

    page = browser.new_context(offline=True).new_page()
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda line: line.type == "error" and troubles.append(line.text))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.goto((tmp_path / "graph.html").as_uri())
    title = f"{BLOCKS[1]}, concept {graph.nodes[first]['concept']} “{evil}”"
    assert page.title() == f"Concept graph: {graph.nodes['class/12']['name']} and </title>"
    assert page.locator("html").get_attribute("lang") == "en"
    button = page.get_by_label(title, exact=True)
    assert button.get_attribute("data-number") == str(graph.nodes[first]["concept"])
    button.focus()
    card = page.locator(".gig-card")
    assert title in card.inner_text() and f"nearest PFVs: {evil}" in card.inner_text()
    assert card.locator("img").get_attribute("alt") == evil
    assert page.locator("img[onerror]").count() == 0

    def lines():
        """Lines in full colour and faded ones, from what plotly was given."""
        return page.evaluate(
            """() => document.querySelector('.js-plotly-plot').data
            .flatMap((t, i, all) => t.meta?.edges ? [[t.x.length, all[i + 1].x.length]] : [])
            .reduce((sum, [a, b]) => [sum[0] + a / 3, sum[1] + b / 3], [0, 0])"""
        )

    def expected(threshold, focus=None):
        strong = nx.DiGraph(_strong(graph, threshold))
        if focus is None:
            return [strong.number_of_edges(), 0]
        lineages = ({focus} | f(strong, focus) for f in (nx.ancestors, nx.descendants))
        kept = sum(strong.subgraph(lineage).number_of_edges() for lineage in lineages)
        return [kept, strong.number_of_edges() - kept]

    assert lines() == expected(0.3)
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert lines() == expected(0.3, first)
    assert 0 < lines()[0] < expected(0.3)[0]
    page.get_by_label("weakest line").fill("0.1")
    assert lines() == expected(0.1, first)
    button.press("Escape")
    assert lines() == expected(0.1)
    page.get_by_label("concepts per class and block").fill("1")
    # One concept each of two classes and of the shared ones a block, and the two classes.
    assert page.locator(".gig-stage > button:visible").count() == 3 * len(BLOCKS) + 2
    page.context.close()
    assert not troubles

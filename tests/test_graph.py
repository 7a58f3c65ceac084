"""graph.py and its figures: edges are GIG values, choices are those announced, names do no harm."""

import json
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import random_network, random_parts
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from gig_helpers import concept_graph
from gig_helpers.gig import class_relevance, gig
from gig_helpers.graph import _choose
from gig_helpers.report import graph_figures
from gig_helpers.report.examples import Example

BLOCKS = ("layer2.0", "layer3.1", "layer4.1")
CLASSES = [12, 12, 13]


@pytest.fixture(scope="module")
def parts():
    """Three pictures' codes in twelve random concepts per block of a small random network."""
    network = random_network("resnet18")
    codes, concepts = random_parts(network, dict(zip(BLOCKS, (8, 4, 2), strict=True)), 3)
    return network, codes, concepts


@pytest.fixture(scope="module")
def pair(parts):
    return concept_graph(*parts, CLASSES, top=3, shared=2, points=16)


def test_edges_equal_gig_averaged_over_the_pictures(parts, pair):
    network, codes, concepts = parts
    for a, b in zip(BLOCKS, BLOCKS[1:], strict=False):
        vectors = concepts[a].vectors, concepts[b].vectors
        values = gig(network, codes[a], vectors[0], a, b, vectors[1], points=16).mean(0)
        edges = [(u, v, d) for u, v, d in pair.edges(data=True) if u.startswith(f"{a}/")]
        largest = max(abs(d["raw"]) for *_, d in edges)
        assert largest > 0
        for source, target, data in edges:
            q, t = pair.nodes[source]["concept"], pair.nodes[target]["concept"]
            # One batch of targets or another: float32 sums differ in the last digits.
            assert data["raw"] == pytest.approx(float(values[t, q]), rel=1e-3, abs=1e-5)
            assert data["weight"] == pytest.approx(abs(data["raw"]) / largest)
    assert any(d["raw"] < 0 for *_, d in pair.edges(data=True))


def test_class_edges_are_class_relevance(parts, pair):
    network, codes, concepts = parts
    block = BLOCKS[-1]
    vectors = concepts[block].vectors
    values = class_relevance(network, codes[block], vectors, block, [12, 13], points=16)
    expected = {12: values[:2, 0].mean(0), 13: values[2:, 1].mean(0)}
    for target, of_class in expected.items():
        edges = list(pair.in_edges(f"class/{target}", data=True))
        assert edges
        for source, _, data in edges:
            q = pair.nodes[source]["concept"]
            assert data["raw"] == pytest.approx(float(of_class[q]), rel=1e-3, abs=1e-6)


def test_concepts_with_a_beta_of_their_own_keep_it(parts):
    """Attributions begin where the concepts say, at a sparse autoencoder's b_d for instance."""
    network, codes, concepts = parts
    own = {b: replace(c, beta=c.beta + 0.5) for b, c in concepts.items()}
    graph = concept_graph(network, codes, own, CLASSES, top=3, shared=2, points=16)
    a, b, last = BLOCKS
    close = {"rel": 1e-3, "abs": 1e-5}
    options = {"points": 16}
    for source, target in ((a, b), (b, last)):
        here, above = own[source], own[target].vectors
        given = (network, codes[source], here.vectors, source, target, above)
        values = gig(*given, beta=here.beta, **options).mean(0)
        others = gig(*given, **options).mean(0)
        assert (values - others).abs().max() > 0.01 * values.abs().max()
        edges = [e for e in graph.edges(data=True) if e[0].startswith(f"{source}/")]
        for lower, upper, data in edges:
            t, q = graph.nodes[upper]["concept"], graph.nodes[lower]["concept"]
            # One batch of targets or another: float32 sums differ in the last digits.
            assert data["raw"] == pytest.approx(float(values[t, q]), **close)
    for block, here in own.items():
        values = class_relevance(
            network, codes[block], here.vectors, block, [12, 13], beta=here.beta, **options
        )
        expected = torch.stack([values[:2, 0].mean(0), values[2:, 1].mean(0)], 1)
        for _, data in graph.nodes(data=True):
            if data["block"] == block:
                wanted = expected[data["concept"]].tolist()
                assert data["relevance"] == pytest.approx(wanted, **close)


def test_choice_by_hand():
    relevance = torch.tensor([[9.0, 8.0, 1.0, -1.0, 0.0], [1.0, 7.0, 10.0, 2.0, 0.0]])
    # Divided by 9 and 10, the smaller ones are 0.1, 0.7, 0.1, < 0, 0: concept 1 is shared.
    assert _choose(relevance, top=2, shared=1) == {0: 0, 1: "shared", 2: 1, 3: 1}
    assert _choose(relevance[:1], top=2, shared=1) == {0: 0, 1: 0}


def test_same_input_same_graph(parts, pair):
    again = concept_graph(*parts, CLASSES, top=3, shared=2, points=16)
    assert nx.utils.graphs_equal(again, pair)


def test_one_class_and_one_picture(parts):
    network, codes, concepts = parts
    single = concept_graph(network, {b: c[:1] for b, c in codes.items()}, concepts, [12], top=4)
    assert sorted(single.successors("layer4.1/" + str(_first(single)))) == ["class/12"]
    for block in BLOCKS:
        members = [n for n, d in single.nodes(data=True) if d["block"] == block]
        assert 1 <= len(members) <= 4
        assert all(single.nodes[n]["relevance"][0] > 0 for n in members)


def _first(graph):
    return next(d["concept"] for _, d in graph.nodes(data=True) if d["block"] == "layer4.1")


def test_bad_input_is_named(parts):
    network, codes, concepts = parts
    with pytest.raises(ValueError, match="one or two classes, got 3"):
        concept_graph(network, codes, concepts, [1, 2, 3])
    with pytest.raises(ValueError, match="3 pictures but 2 classes"):
        concept_graph(network, codes, concepts, [1, 2])
    backwards = dict(reversed(codes.items()))
    with pytest.raises(ValueError, match="in the network's order"):
        concept_graph(network, backwards, concepts, CLASSES)
    with pytest.raises(KeyError, match="layer9.9"):
        concept_graph(network, {"layer9.9": codes["layer2.0"]}, concepts, CLASSES)


def test_files_keep_everything(pair, tmp_path):
    graph_figures.save_json(pair, tmp_path / "graph.json")
    assert nx.utils.graphs_equal(graph_figures.load_json(tmp_path / "graph.json"), pair)
    graph_figures.save_graphml(pair, tmp_path / "graph.graphml")
    read = nx.read_graphml(tmp_path / "graph.graphml")
    assert set(read) == set(pair)
    for source, target, data in pair.edges(data=True):
        assert read.edges[source, target]["raw"] == pytest.approx(data["raw"])
    node = next(n for n, d in pair.nodes(data=True) if d["kind"] == "concept")
    assert json.loads(read.nodes[node]["relevance"]) == pair.nodes[node]["relevance"]


def _thumbnails(graph, picture="junco/a.jpg"):
    generator = np.random.default_rng(0)
    return {
        node: Example(
            generator.integers(0, 255, (40, 40, 3), dtype=np.uint8),
            generator.random((40, 40)),
            (10, 10, 20),
            picture,
            "junco",
        )
        for node, data in graph.nodes(data=True)
        if data["kind"] == "concept"
    }


def _strong(graph, threshold):
    """Edges that a figure draws: those to a class whatever their weight, but for nothing."""
    edges = graph.edges(data="weight")
    return [(a, b) for a, b, w in edges if w >= threshold or (b.startswith("class/") and w > 0)]


def test_a_graph_of_one_class_lies_on_its_side_with_its_path_in_orange(parts):
    graph = concept_graph(*parts, [12, 12, 12], top=2, points=2)
    last = next(n for n, d in graph.nodes(data=True) if d["block"] == BLOCKS[-1])
    path = [next(iter(graph.pred[last])), last, "class/12"]
    photographs = {12: np.zeros((8, 8, 3), np.uint8)}
    figure = graph_figures.still_graph(graph, _thumbnails(graph), photographs, 2.0, path)
    axes, orange = figure.axes[0], graph_figures._PATH
    columns = {round(image.get_extent()[0], 3) for image in axes.images}
    assert len(columns) == len(BLOCKS) + 1
    assert sum(to_hex(patch.get_edgecolor()).upper() == orange for patch in axes.patches) == 3
    assert sum(line.get_color() == orange for line in axes.lines) == 2
    # No edge between concepts is as strong as 2: only the path's is drawn, and those to the class.
    drawn = sum(len(lines.get_segments()) for lines in axes.collections)
    assert drawn == 1 + sum(b == "class/12" for _, b in _strong(graph, 2.0))
    plt.close(figure)


def test_still_figure_draws_every_edge_above_the_threshold(pair):
    photographs = dict.fromkeys((12, 13), np.zeros((8, 8, 3), np.uint8))
    named = pair.copy()
    concept = next(n for n, d in named.nodes(data=True) if d["kind"] == "concept")
    named.nodes[concept]["name"] = "$_x"  # a reader's name, not a formula
    figure = graph_figures.still_graph(named, _thumbnails(named), photographs, threshold=0.2)
    figure.canvas.draw()
    assert any(text.get_text().endswith(" $_x") for text in figure.axes[0].texts)
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
    figure, axes = plt.subplots()
    graph_figures.named_graph(axes, graph, threshold=0.2)
    figure.canvas.draw()
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("$_x") == 1 and texts.count("of 4") == len(concepts) - 1
    drawn = sum(len(c.get_segments()) for c in axes.collections)
    assert drawn == len(_strong(graph, 0.2))
    tiles = {to_hex(patch.get_facecolor()).upper() for patch in axes.patches if patch.get_fill()}
    assert {*graph_figures._TILES} < tiles and len(tiles) == 3, "two classes and what they share"
    plt.close(figure)


def test_names_are_escaped(parts):
    evil = "<img src=x onerror=alert(1)>"
    network, codes, concepts = parts
    graph = concept_graph(network, codes, concepts, CLASSES, top=2, shared=1)
    node = next(n for n, d in graph.nodes(data=True) if d["kind"] == "concept")
    named = concept_graph(network, codes, concepts, CLASSES, top=2, shared=1, names={node: evil})
    assert named.nodes[node]["name"] == evil
    photographs = dict.fromkeys((12, 13), np.zeros((8, 8, 3), np.uint8))
    shots = {node: [shot] for node, shot in _thumbnails(named, f"{evil}/a.jpg").items()}
    figure = graph_figures.interactive_graph(named, shots, photographs)
    # What plotly reads as HTML. The cards' texts are plain; the exported page's test shows them.
    shown = [*figure.data[-1].text, *(note.text for note in figure.layout.annotations)]
    assert sum("&lt;img" in text for text in shown) >= 2  # the named one, and every picture's name
    assert not any("<img" in text for text in shown)


def test_exported_page_follows_a_concept(pair, browser, tmp_path):
    """The one HTML file, in a browser without internet, against networkx on the same graph."""
    evil = "<img src=x onerror=alert(1)>"
    graph = pair.copy()
    first = next(n for n, d in graph.nodes(data=True) if d["block"] == BLOCKS[1])
    graph.nodes[first]["name"] = evil
    shots = {node: [shot] for node, shot in _thumbnails(graph, f"{evil}/a.jpg").items()}
    photographs = dict.fromkeys((12, 13), np.zeros((8, 8, 3), np.uint8))
    figure = graph_figures.interactive_graph(graph, shots, photographs, threshold=0.3)
    graph_figures.save_html(figure, tmp_path / "graph.html")

    page = browser.new_context(offline=True).new_page()
    troubles = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda line: line.type == "error" and troubles.append(line.text))
    page.on("dialog", lambda dialog: troubles.append(dialog.message))
    page.goto((tmp_path / "graph.html").as_uri())
    title = f"{BLOCKS[1]}, concept {graph.nodes[first]['concept']} “{evil}”"
    button = page.get_by_label(title, exact=True)
    button.focus()
    card = page.locator(".gig-card")
    assert title in card.inner_text() and f"{evil}/a.jpg" in card.inner_text()
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


def test_a_block_without_a_concept_for_the_class_has_no_edges(parts):
    network, codes, concepts = parts
    middle = BLOCKS[1]
    empty = codes | {middle: 0 * codes[middle]}
    graph = concept_graph(network, empty, concepts, CLASSES, top=2, points=2)
    assert not [node for node, data in graph.nodes(data=True) if data["block"] == middle]
    assert graph.in_degree("class/12") > 0

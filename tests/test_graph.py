"""graph.py: edges are GIG values, choices are those announced."""

from dataclasses import replace

import networkx as nx
import pytest
import torch
from conftest import random_decomposition, random_network
from linear import Linear, concepts_of

from gig_helpers import Decomposition, concept_graph
from gig_helpers.gig import class_relevance, gig

BLOCKS = ("layer2.0", "layer3.1", "layer4.1")
CLASSES = [12, 12, 13]
OPTIONS = {"top": 3, "shared": 2, "points": 16}
# One batch of targets or another: float32 sums differ in the last digits.
CLOSE = {"rel": 1e-3, "abs": 1e-5}


@pytest.fixture(scope="module")
def d():
    """Three pictures in twelve random concepts per block of a small random network."""
    sides = dict(zip(BLOCKS, (8, 4, 2), strict=True))
    return random_decomposition(random_network("resnet18"), sides, 3)


@pytest.fixture(scope="module")
def pair(d):
    return concept_graph(d, CLASSES, **OPTIONS)


def means(d, source, later, rest=True):
    """GIG between all concepts of two blocks (T, k), averaged over the pictures."""
    here, above = d.concepts[source], d.concepts[later].vectors
    given = d.network, d.codes[source], here.vectors, source, later, above
    left = d.residual(source) if rest else None
    return gig(*given, beta=here.beta, points=16, rest=left).mean(0)[:, : len(here)]


def relevances(d, block):
    """Relevance (2, k + 1) of a block's concepts and its rest, over the pictures of each class."""
    here = d.concepts[block]
    given = d.network, d.codes[block], here.vectors, block, [12, 13]
    values = class_relevance(*given, beta=here.beta, points=16, rest=d.residual(block))
    return torch.stack([values[:2, 0].mean(0), values[2:, 1].mean(0)])


def test_edges_equal_gig_averaged_over_the_pictures(d, pair):
    for a, b in zip(BLOCKS, BLOCKS[1:], strict=False):
        values = means(d, a, b)
        edges = [edge for edge in pair.edges(data=True) if edge[0].startswith(f"{a}/")]
        largest = max(abs(data["raw"]) for *_, data in edges)
        assert largest > 0
        for source, target, data in edges:
            q, t = pair.nodes[source]["concept"], pair.nodes[target]["concept"]
            assert data["raw"] == pytest.approx(float(values[t, q]), **CLOSE)
            assert data["weight"] == pytest.approx(abs(data["raw"]) / largest)
    assert any(data["raw"] < 0 for *_, data in pair.edges(data=True))


def test_the_papers_path_leaves_the_rest_out(d):
    graph = concept_graph(d, CLASSES, rest=False, **OPTIONS)
    a, b = BLOCKS[:2]
    values, others = means(d, a, b, rest=False), means(d, a, b)
    assert (values - others).abs().max() > 0.01 * values.abs().max()
    for source, target, data in graph.edges(data=True):
        if source.startswith(f"{a}/"):
            q, t = graph.nodes[source]["concept"], graph.nodes[target]["concept"]
            assert data["raw"] == pytest.approx(float(values[t, q]), **CLOSE)
    assert all(left == 0 for of in graph.graph["held"].values() for _, left in of)


def test_a_graph_says_what_its_nodes_and_the_rest_hold(d, pair):
    for block in BLOCKS:
        values = relevances(d, block)
        nodes = [data["concept"] for _, data in pair.nodes(data=True) if data["block"] == block]
        for (drawn, left), row in zip(pair.graph["held"][block], values, strict=True):
            assert drawn == pytest.approx(float(row[nodes].sum() / row.sum()), **CLOSE)
            assert left == pytest.approx(float(row[-1] / row.sum()), **CLOSE)


def test_a_tolerance_is_the_readers_and_else_five_percent(d):
    """Of edges to a class from the first block, whose path is bent most."""
    source = d.concepts[BLOCKS[0]]
    given = d.network, d.codes[BLOCKS[0]][:1], source.vectors, BLOCKS[0], [12]
    rest = d.residual(BLOCKS[0])[:1]
    found = {}
    for options in ({}, {"tolerance": 1e-4}):
        used = {"tolerance": 0.05} | options
        wanted = class_relevance(*given, beta=source.beta, rest=rest, **used)[0, 0]
        one = d[:1].at(BLOCKS[0])
        edges = concept_graph(one, [12], top=3, **options).in_edges("class/12", data="raw")
        nodes = {name: raw for name, _, raw in edges if name.split("/")[1].isdigit()}
        for name, raw in nodes.items():
            assert raw == pytest.approx(float(wanted[int(name.split("/")[1])]), rel=3e-3)
        found[len(options)] = sum(nodes.values())
    assert found[0] != pytest.approx(found[1], rel=0.01), "the two tolerances differ"


def test_class_edges_are_class_relevance(d, pair):
    for target, of_class in zip((12, 13), relevances(d, BLOCKS[-1]), strict=True):
        edges = list(pair.in_edges(f"class/{target}", data=True))
        assert edges
        for source, _, data in edges:
            q = pair.nodes[source]["concept"]
            assert data["raw"] == pytest.approx(float(of_class[q]), rel=1e-3, abs=1e-6)


def test_concepts_with_a_beta_of_their_own_keep_it(d):
    """Attributions begin where the concepts say, at a sparse autoencoder's b_d for instance."""
    shifted = {b: replace(c, beta=c.beta + 0.5) for b, c in d.concepts.items()}
    own = replace(d, concepts=shifted)
    graph = concept_graph(own, CLASSES, **OPTIONS)
    for source, target in zip(BLOCKS, BLOCKS[1:], strict=False):
        values, others = means(own, source, target), means(d, source, target)
        assert (values - others).abs().max() > 0.01 * values.abs().max()
        edges = [edge for edge in graph.edges(data=True) if edge[0].startswith(f"{source}/")]
        for lower, upper, data in edges:
            t, q = graph.nodes[upper]["concept"], graph.nodes[lower]["concept"]
            assert data["raw"] == pytest.approx(float(values[t, q]), **CLOSE)
    for block in BLOCKS:
        expected = relevances(own, block).T
        for _, data in graph.nodes(data=True):
            if data["block"] == block:
                wanted = expected[data["concept"]].tolist()
                assert data["relevance"] == pytest.approx(wanted, **CLOSE)


def groups(relevance, top, shared):
    """The groups of concepts with these relevances for one or two classes, by concept."""
    m = torch.tensor(relevance).double()
    classes, k = m.shape

    class Known(Linear):
        """What a channel brings to a class is its relevance."""

        M, classes = m, ("zero", "one")

        def channels(self, block):
            return k

    concepts = {"a": concepts_of(torch.eye(k).double(), torch.zeros(k).double())}
    codes = torch.ones(classes, 1, k)
    known = Decomposition(Known(), torch.zeros(classes, 1, k), concepts, {"a": codes})
    graph = concept_graph(known, list(range(classes)), top=top, shared=shared, rest=False)
    turned = concept_graph(known, [*reversed(range(classes))], top=top, shared=shared, rest=False)
    assert turned.graph["classes"] == [*reversed(graph.graph["classes"])]
    nodes, again = (
        [data for _, data in each.nodes(data=True) if data["kind"] == "concept"]
        for each in (graph, turned)
    )
    for data in nodes:
        assert data["relevance"] == pytest.approx(m[:, data["concept"]].tolist())
    found, same = ({data["concept"]: data["group"] for data in each} for each in (nodes, again))
    assert found == same, "groups go by class, whichever comes first"
    return found


def test_choice_by_hand():
    relevance = [[9.0, 8.0, 1.0, -1.0, 0.0], [1.0, 7.0, 10.0, 2.0, 0.0]]
    # Divided by 9 and 10, the smaller ones are 0.1, 0.7, 0.1, < 0, 0: concept 1 is shared.
    assert groups(relevance, top=2, shared=1) == {0: "0", 1: "shared", 2: "1", 3: "1"}
    assert groups(relevance[:1], top=2, shared=1) == {0: "0", 1: "0"}
    # The smaller ones are 0.3, 0.6, 0.1, though of the first one the mean is larger.
    relevance = [[10.0, 6.0, 1.0], [3.0, 6.0, 10.0]]
    assert groups(relevance, top=1, shared=1) == {0: "0", 1: "shared", 2: "1"}


def test_a_class_that_no_concept_supports_has_none():
    # Divided by its own maximum, which is below 0, the second class's would be turned round.
    relevance = [[9.0, 8.0, 1.0], [-1.0, -7.0, -10.0]]
    assert groups(relevance, top=2, shared=1) == {0: "0", 1: "0"}


def test_classes_are_compared_by_their_own_maxima():
    # Divided by 9 and 100, the smaller ones are 0.1, 0.56, 0.11, 0.2, though 9 is more than 5; and
    # the last one is 0.44 for the first class, though 20 is more than 4.
    relevance = [[9.0, 5.0, 1.0, 4.0], [10.0, 60.0, 100.0, 20.0]]
    assert groups(relevance, top=2, shared=1) == {0: "0", 1: "shared", 2: "1", 3: "0"}


def test_same_input_same_graph(d, pair):
    assert nx.utils.graphs_equal(concept_graph(d, CLASSES, **OPTIONS), pair)


def test_one_class_and_one_picture(d):
    single = concept_graph(d[[0]], [12], top=4)
    for block in BLOCKS:
        members = [n for n, data in single.nodes(data=True) if data["block"] == block]
        assert 1 <= len(members) <= 4
        assert all(single.nodes[n]["relevance"][0] > 0 for n in members)
    assert [*single.successors(members[0])] == ["class/12"]


def test_pictures_stand_for_what_the_network_says(d):
    said = d.logits().argmax(dim=1).tolist()
    assert len({*said}) <= 2
    graph = concept_graph(d, top=2, points=2)
    assert nx.utils.graphs_equal(graph, concept_graph(d, said, top=2, points=2))
    about = {name: graph.graph[name] for name in ("blocks", "classes", "labels")}
    assert about == {"blocks": [*BLOCKS], "classes": [*dict.fromkeys(said)], "labels": said}


def test_names_are_the_readers_and_the_networks(d):
    named = concept_graph(d, CLASSES, top=2, points=2)
    node = next(n for n, data in named.nodes(data=True) if data["kind"] == "concept")
    named = concept_graph(d, CLASSES, top=2, points=2, names={node: "a beak", "layer9/1": "no"})
    assert named.nodes[node]["name"] == "a beak"
    assert named.nodes["class/12"]["name"] == d.network.classes[12]
    others = [data["name"] for n, data in named.nodes(data=True) if data["kind"] == "concept"]
    assert sorted({*others}) == ["", "a beak"]


def test_bad_input_is_named(d):
    with pytest.raises(ValueError, match="one or two classes, got 3"):
        concept_graph(d, [1, 2, 3])
    with pytest.raises(ValueError, match="2 classes for 3 pictures"):
        concept_graph(d, [1, 2])
    with pytest.raises(ValueError, match="leave 0 … 999"):
        concept_graph(d, [1000] * 3)


def test_a_block_without_a_concept_for_the_class_has_no_edges(d):
    middle = BLOCKS[1]
    empty = d.without({middle: range(12)})
    graph = concept_graph(empty, CLASSES, top=2, points=2)
    assert not [node for node, data in graph.nodes(data=True) if data["block"] == middle]
    assert graph.in_degree("class/12") > 0

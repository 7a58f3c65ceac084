"""paths.py: the strongest edges are followed, controls weigh as much."""

import pytest
import torch
from conftest import random_decomposition, random_network

from gig_helpers.gig import class_relevance, gig
from gig_helpers.paths import NEAREST, control_path, strongest_path

BLOCKS = ("layer2.0", "layer3.1", "layer4.1")


@pytest.fixture(scope="module")
def d():
    """One picture in twelve concepts per block of a small random network."""
    sides = dict(zip(BLOCKS, (8, 4, 2), strict=True))
    return random_decomposition(random_network("resnet18"), sides, 1)


def test_each_step_of_a_path_is_the_largest_of_all_edges(d):
    path = strongest_path(d, 12, tolerance=0.01)
    assert list(path) == [*reversed(BLOCKS)]
    last = BLOCKS[-1]
    here = d.concepts[last]
    given = d.network, d.codes[last], here.vectors, last
    rest = d.residual(last)
    relevance = class_relevance(*given, [12], beta=here.beta, points=64, rest=rest)
    assert path[last] == int(relevance[0, 0, :-1].argmax())
    for a, b in zip(BLOCKS, BLOCKS[1:], strict=False):
        # All edges between the blocks, by many more points.
        here, above = d.concepts[a], d.concepts[b].vectors
        given = d.network, d.codes[a], here.vectors, a, b, above
        edges = gig(*given, beta=here.beta, points=64, rest=d.residual(a))
        assert path[a] == int(edges[0, path[b], :-1].argmax())


def test_what_opposes_most_is_no_part_of_a_path_nor_is_the_rest(d, monkeypatch):
    brought = torch.tensor([[[-5.0, 3.0, 1.0, 9.0]]])  # three concepts, and the rest
    asked = []
    monkeypatch.setattr(
        "gig_helpers.paths.attribute", lambda *_, **options: asked.append(options) or brought
    )
    assert strongest_path(d, 12, tolerance=0.003) == dict.fromkeys(reversed(BLOCKS), 1)
    assert asked == [{"tolerance": t, "rest": True} for t in (0.003, 0.006, 0.006)]
    brought = torch.tensor([[[1.0, 3.0, 5.0, 9.0]]])
    assert set(strongest_path(d, 12).values()) == {2}, "the last of the concepts is one"


def test_a_control_path_ends_alike_and_weighs_as_much(d):
    path = {BLOCKS[2]: 3, BLOCKS[1]: 4, BLOCKS[0]: 5}
    generator = torch.Generator().manual_seed(0)
    drawn = [control_path(d, path, generator) for _ in range(60)]
    assert {control[BLOCKS[2]] for control in drawn} == {3}
    for block in BLOCKS[:2]:
        u, vectors = d.codes[block][0], d.concepts[block].vectors
        weights = [float(sum(abs(row[q]) for row in u) * vectors[q].norm()) for q in range(12)]
        others = [q for q in range(12) if q != path[block]]
        near = sorted(others, key=lambda q: abs(weights[q] - weights[path[block]]))[:NEAREST]
        assert {control[block] for control in drawn} == set(near)
    torch.testing.assert_close(d.logits(drawn[0]), d.logits(dict(reversed(drawn[0].items()))))

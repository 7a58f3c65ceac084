"""paths.py: the strongest edges are followed, what is taken out is what the codes say."""

import pytest
import torch
from conftest import random_network, random_parts

from gig_helpers.gig import class_relevance, gig
from gig_helpers.paths import NEAREST, control_path, logits_without, strongest_path

BLOCKS = ("layer2.0", "layer3.1", "layer4.1")


@pytest.fixture(scope="module")
def parts():
    """One picture of a small random network, and its codes in twelve concepts per block."""
    network = random_network("resnet18")
    codes, concepts = random_parts(network, dict(zip(BLOCKS, (8, 4, 2), strict=True)), 1)
    return network, torch.randn(1, 3, 64, 64), codes, concepts


def test_each_step_of_a_path_is_the_largest_of_all_edges(parts):
    network, _, codes, concepts = parts
    path = strongest_path(network, codes, concepts, 12, tolerance=0.01)
    assert list(path) == [*reversed(BLOCKS)]
    given = codes[BLOCKS[2]], concepts[BLOCKS[2]].vectors, BLOCKS[2]
    relevance = class_relevance(network, *given, [12], beta=concepts[BLOCKS[2]].beta, points=64)
    assert path[BLOCKS[2]] == int(relevance[0, 0].argmax())
    for a, b in ((BLOCKS[1], BLOCKS[2]), (BLOCKS[0], BLOCKS[1])):
        # All edges between the blocks, by many more points.
        v = concepts[a].vectors
        edges = gig(
            network, codes[a], v, a, b, concepts[b].vectors, beta=concepts[a].beta, points=64
        )
        assert path[a] == int(edges[0, path[b]].argmax())


def test_a_control_path_ends_alike_and_weighs_as_much(parts):
    _, _, codes, concepts = parts
    path = {BLOCKS[2]: 3, BLOCKS[1]: 4, BLOCKS[0]: 5}
    generator = torch.Generator().manual_seed(0)
    drawn = [control_path(codes, concepts, path, generator) for _ in range(60)]
    assert {found[BLOCKS[2]] for found in drawn} == {3}
    for block in BLOCKS[:2]:
        weights = [
            float(sum(abs(u[q]) for u in codes[block][0]) * concepts[block].vectors[q].norm())
            for q in range(12)
        ]
        others = [q for q in range(12) if q != path[block]]
        near = sorted(others, key=lambda q: abs(weights[q] - weights[path[block]]))[:NEAREST]
        assert {found[block] for found in drawn} == set(near)


def test_what_is_taken_out_is_a_concept_times_its_codes(parts):
    network, image, codes, concepts = parts
    path = {BLOCKS[2]: 1, BLOCKS[0]: 2}
    found = logits_without(network, image, codes, concepts, [{}, path])
    x = network.preactivations(image, BLOCKS[:1])[BLOCKS[0]].detach()
    torch.testing.assert_close(found[0], network.logits(image)[0].detach())
    for block, above in ((BLOCKS[0], BLOCKS[2]), (BLOCKS[2], None)):
        x, rows = x.clone(), x.shape[3]
        for p, u in enumerate(codes[block][0, :, path[block]]):
            x[0, :, p // rows, p % rows] -= u * concepts[block].vectors[path[block]]
        if above:
            x = network.between(x, block, above).detach()
    by_hand = network.logits_from(x, BLOCKS[2])[0].detach()
    torch.testing.assert_close(found[1], by_hand, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[0], found[1], rtol=1e-2)

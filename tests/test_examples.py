"""report/examples.py: crops, squares and iERFs of PFVs are those of their pictures."""

from dataclasses import replace

import pytest
import torch
from conftest import random_network

from gig_helpers import Concepts, load_pictures, sample, srd
from gig_helpers.data import profiles
from gig_helpers.report.examples import (
    examples,
    ierfs,
    likeness,
    localize,
    nearest_examples,
    square,
)

PROFILE = replace(
    profiles.get("quick"), blocks=("layer1.1", "layer3.0"), per_image=3, batch_size=2, seed=7
)

pytestmark = pytest.mark.usefixtures("artifacts_folder")


def test_ierfs_and_examples_belong_to_their_pictures(photographs):
    network, pictures = random_network(), load_pictures(str(photographs))
    dataset = sample(network, pictures, PROFILE)
    indices = torch.tensor([40, 41, 0])
    maps = ierfs(network, pictures, dataset, "layer1.1", indices)
    for row, index in enumerate(indices.tolist()):
        image = pictures[int(dataset.picture_ids("layer1.1")[index])][None]
        position = dataset.positions("layer1.1")[index]
        alone = srd.ierf(network, image, "layer1.1", position[None, None])[0, 0]
        torch.testing.assert_close(maps[row], alone, rtol=1e-3, atol=1e-6)
    for example in examples(network, pictures, dataset, "layer1.1", indices):
        left, top, side = example.square
        edge = example.crop.shape[0]
        assert example.crop.shape == (edge, edge, 3) and example.ierf.shape == (edge, edge)
        assert 0 <= left <= edge - side and 0 <= top <= edge - side
        assert example.label == "junco"


def test_square_is_the_smallest_square_that_holds_the_share():
    ierf = torch.zeros(100, 100)
    ierf[40:60, 70:90] = 1 / 400
    top, left, side = square(ierf, 1.0)
    assert (top, left, side) == (40, 70, 20)
    top, left, side = square(torch.eye(100)[99][None].expand(100, 100) / 100, 0.5)
    assert left + side <= 100 and top + side <= 100
    assert square(-torch.ones(50, 80)) == (0, 0, 50)


def test_no_pfv_is_no_map(photographs):
    network, pictures = random_network("basic"), load_pictures(str(photographs)).subset([0])
    dataset = sample(network, pictures, PROFILE)
    with pytest.raises(ValueError, match="no PFV was asked for"):
        ierfs(network, pictures, dataset, "layer1.1", torch.zeros(0, dtype=torch.long))


def test_nearest_examples_are_those_of_the_concepts_asked_for(photographs):
    network = random_network("basic")
    pictures = load_pictures(str(photographs)).subset(range(6))
    dataset = sample(network, pictures, PROFILE)
    x, beta = dataset.vectors("layer3.0"), network.bn_shift("layer3.0")
    # Three concepts, each a PFV itself, and so the one that it is nearest to.
    concepts = Concepts(x[[2, 11, 17]] - beta, beta, torch.zeros(len(x)), "layer3.0")
    found = nearest_examples(network, pictures, dataset, concepts, [2, 0], count=2)
    assert [len(each) for each in found] == [2, 2]
    rows = concepts.nearest(x, 2)
    assert rows[[2, 0], 0].tolist() == [17, 2]
    for each, indices in zip(found, rows[[2, 0]], strict=True):
        alone = examples(network, pictures, dataset, "layer3.0", indices)
        for one, other in zip(each, alone, strict=True):
            assert one.picture == other.picture and one.square == other.square
            # An iERF of a batch of another size rounds differently in float32.
            assert abs(one.ierf - other.ierf).max() < 1e-3 * abs(other.ierf).max()


def test_likeness_is_that_of_the_classes_that_nearest_pfvs_come_from(photographs):
    network = random_network("basic")
    pictures = load_pictures(str(photographs)).subset(range(6))
    dataset = sample(network, pictures, PROFILE)
    block = "layer3.0"
    x, beta = dataset.vectors(block), network.bn_shift(block)
    concepts = Concepts(torch.randn(5, x.shape[1]), beta, torch.zeros(len(x)), block)
    importance, classes = torch.randn(2, 5), [3, 4]
    among = dataset.picture_ids(block) != 1
    found = likeness(network, dataset, concepts, importance, classes, among=among, first=2, count=3)
    cosine = torch.nn.functional.cosine_similarity
    for row, label, value in zip(importance, classes, found, strict=True):
        alike = []
        for q in row.argsort(descending=True)[:2]:
            near = cosine(x - beta, concepts.vectors[q][None]).masked_fill(~among, -2)
            for n in near.argsort(descending=True)[:3]:
                other = dataset.predictions()[dataset.picture_ids(block)[n]]
                vectors = network.class_vectors
                alike.append(float(cosine(vectors[label], vectors[other], dim=0)))
        assert len(alike) == 6 and float(value) == pytest.approx(sum(alike) / 6, abs=1e-5)


def test_localize_is_a_weighted_sum_of_ierfs():
    net = random_network("v1.5", torch.float64, layers=(2, 2, 1, 1), width_per_group=8)
    torch.manual_seed(0)
    image = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    block = "layer2.1"
    side = net.preactivations(image, [block])[block].shape[2]
    attributions = torch.randn(side**2, dtype=torch.float64)
    expected = torch.zeros(48, 48, dtype=torch.float64)
    strongest = sorted(range(side**2), key=lambda p: -abs(float(attributions[p])))[:5]
    for p in strongest:
        place = torch.tensor([[p // side, p % side]])
        expected += attributions[p] * srd.ierf(net, image, block, place)[0]
    torch.testing.assert_close(localize(net, image, block, attributions, 5), expected)
    with pytest.raises(ValueError, match="one per position, got"):
        localize(net, image, block, attributions[:-1])

"""report/examples.py: crops, squares and iERFs of PFVs are those of their pictures."""

import json
from dataclasses import replace
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from conftest import random_network
from torch.nn import functional as F

from gig_helpers import Concepts, fit_concepts, load_pictures, sample, srd
from gig_helpers.data.profiles import Profile
from gig_helpers.report.examples import (
    _example,
    examples,
    ierfs,
    illustrate,
    likeness,
    localize,
    named,
    nearest_examples,
    on_mask,
    square,
)

PROFILE = Profile(blocks=("layer1.1", "layer3.0"), per_image=3, batch_size=2, seed=7)

pytestmark = pytest.mark.usefixtures("artifacts_folder")


def test_ierfs_and_examples_belong_to_their_pictures(photographs):
    network, pictures = random_network(), load_pictures(str(photographs))
    pfvs = sample(network, pictures, PROFILE)
    rows = torch.tensor([40, 41, 0])
    maps = ierfs(pfvs, "layer1.1", rows)
    for row, index in enumerate(rows.tolist()):
        image = pictures[int(pfvs.picture_ids("layer1.1")[index])][None]
        position = pfvs.positions("layer1.1")[index]
        alone = srd.ierf(network, image, "layer1.1", position[None, None])[0, 0]
        torch.testing.assert_close(maps[row], alone, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="no PFV of layer1.1 was asked for"):
        ierfs(pfvs, "layer1.1", [])
    shifted = 0
    for example, field in zip(examples(pfvs, "layer1.1", rows), maps, strict=True):
        left, top, side = example.square
        shifted += left != top
        held = example.ierf[top : top + side, left : left + side].clip(0).sum()
        assert held >= 0.7 * float(field.clamp(min=0).sum()) - 1e-6 or side == len(field)
        edge = example.crop.shape[0]
        assert example.crop.shape == (edge, edge, 3) and example.ierf.shape == (edge, edge)
        assert 0 <= left <= edge - side and 0 <= top <= edge - side
        assert example.label == "junco"
    assert shifted, "near an edge of the picture, where left and top differ"


def test_a_crop_is_centred_on_its_square_and_stays_inside():
    """Twice the square's side; where the square is in a corner, so is the crop."""
    image = np.random.default_rng(0).integers(0, 255, (100, 120, 3), dtype=np.uint8)
    given = {"image": lambda _: image, "labels": (None,), "paths": ("a.png",)}
    pfvs = SimpleNamespace(pictures=SimpleNamespace(**given))
    for rows, columns, place in ((40, 50, (10, 10)), (0, 100, (20, 0)), (80, 0, (0, 20))):
        ierf = torch.zeros(100, 120)
        ierf[rows : rows + 20, columns : columns + 20] = 1
        (top, left, side), shot = square(ierf), _example(pfvs, 0, ierf)
        assert shot.crop.shape == (2 * side, 2 * side, 3) and shot.square[2] == side
        x, y = shot.square[:2]
        assert np.allclose((x, y), place, atol=2), "of a side of 20, or a little less"
        own = image[top : top + side, left : left + side]
        assert np.array_equal(shot.crop[y : y + side, x : x + side], own)
        inside = shot.ierf[y : y + side, x : x + side]
        assert np.array_equal(inside, ierf[top : top + side, left : left + side].numpy())


def test_square_is_the_smallest_square_that_holds_the_share():
    ierf = torch.zeros(100, 100)
    ierf[40:60, 70:90] = 1 / 400
    top, left, side = square(ierf, 1.0)
    assert (top, left, side) == (40, 70, 20)
    assert square(ierf, 0.3) == (44, 74, 12), "of 12² of 400 pixels, where 8² are too few"
    top, left, side = square(torch.eye(100)[99][None].expand(100, 100) / 100, 0.5)
    assert left + side <= 100 and top + side <= 100
    assert square(-torch.ones(50, 80)) == (0, 0, 50)
    corners = torch.zeros(11, 10)
    corners[[0, 0, 10, 10], [0, 9, 0, 9]] = 1.0
    assert square(corners, 1.0) == (0, 0, 10), "no square that is tried holds as much"
    ierf[:20, :20] = -1 / 400  # what speaks against it moves nothing
    assert square(ierf, 1.0) == (40, 70, 20)


def test_an_example_is_made_once(photographs, monkeypatch):
    pfvs = sample(random_network(), load_pictures(str(photographs)).subset(range(4)), PROFILE)
    first = examples(pfvs, "layer1.1", [5, 1, 5])
    assert first[0] is first[2] is not first[1]
    made, real = [], srd.ierf

    def watched(network, images, *rest, **options):
        made.append(len(images))
        return real(network, images, *rest, **options)

    monkeypatch.setattr(srd, "ierf", watched)
    again = examples(pfvs, "layer1.1", torch.tensor([1, 2, 5]))
    assert made == [1] and again[0] is first[1] and again[2] is first[0]
    assert all(example.ierf.base is None for example in again), "a batch's whole maps are kept"
    assert examples(pfvs, "layer1.1", []) == [] and made == [1]


def test_nearest_examples_are_those_of_the_concepts_asked_for(photographs):
    network = random_network("basic")
    pfvs = sample(network, load_pictures(str(photographs)).subset(range(6)), PROFILE)
    x, beta = pfvs.vectors("layer3.0"), network.bn_shift("layer3.0")
    # Three concepts, each a PFV itself, and so the one that it is nearest to.
    concepts = Concepts(x[[2, 11, 17]] - beta, beta, torch.zeros(len(x)), "layer3.0")
    shots = nearest_examples(pfvs, concepts, [2, 0], count=2)
    assert [len(each) for each in shots] == [2, 2]
    unit = F.normalize(x - beta, dim=1)
    origin, rows = pfvs.photographs[pfvs.picture_ids("layer3.0")].tolist(), []
    for concept in (17, 2):
        order = (unit @ unit[concept]).argsort(descending=True).tolist()
        assert order[0] == concept
        rows.append([concept, next(n for n in order if origin[n] != origin[concept])])
    pfvs.shown.clear()
    for near, indices in zip(shots, rows, strict=True):
        for shot, alone in zip(near, examples(pfvs, "layer3.0", indices), strict=True):
            assert shot.picture == alone.picture and shot.square == alone.square
            # An iERF of a batch of another size rounds differently in float32.
            assert abs(shot.ierf - alone.ierf).max() < 1e-3 * abs(alone.ierf).max()
    assert nearest_examples(pfvs, concepts, [], count=2) == []


def test_a_graph_is_illustrated_with_what_it_was_made_of(photographs):
    network = random_network("basic")
    pictures = load_pictures(str(photographs)).subset([3, 0, 1, 3])
    pfvs = sample(network, pictures, PROFILE)
    concepts, nodes = {}, {}
    for block in PROFILE.blocks:
        x, beta = pfvs.vectors(block), network.bn_shift(block)
        # All PFVs are of the first concept; the second has none, as of an extractor's.
        concepts[block] = Concepts(x[[8, 2]] - beta, beta, torch.zeros(len(x)).long(), block)
        nodes |= {f"{block}/{q}": block for q in (1, 0)}
    graph = nx.DiGraph(blocks=list(PROFILE.blocks), classes=[4, 2], labels=[2, 4, 4])
    for node, block in nodes.items():
        graph.add_node(node, kind="concept", block=block, concept=int(node[-1]))
    for label in (4, 2):
        graph.add_node(f"class/{label}", kind="class", block="class", name=str(label))
    images = torch.stack([pictures[i] for i in range(3)])
    d = SimpleNamespace(network=network, images=images, concepts=concepts)
    shown = illustrate(graph, d, pfvs, count=2)
    assert shown.graph is graph and [*shown.examples] == [*nodes]
    assert [graph.nodes[n]["photographs"] for n in nodes] == [0, 3, 0, 3]
    for node, block in nodes.items():
        (near,) = nearest_examples(pfvs, concepts[block], [int(node[-1])], 2)
        assert all(a is b for a, b in zip(shown.examples[node], near, strict=True))
    # Of concepts that were made without a photograph, that one does not count.
    left = [(~pfvs.held_out(block)).sum() for block in PROFILE.blocks]
    assert all(n < pfvs.count(block) for n, block in zip(left, PROFILE.blocks, strict=True))
    d.concepts = {
        block: replace(concepts[block], labels=torch.zeros(n).long())
        for n, block in zip(left, PROFILE.blocks, strict=True)
    }
    illustrate(graph, d, pfvs)
    assert [graph.nodes[n]["photographs"] for n in nodes] == [0, 2, 0, 2]
    assert [*shown.faces] == [4, 2]
    for label, first in ((4, 1), (2, 0)):
        assert np.array_equal(shown.faces[label], pictures.image(first))


def test_likeness_is_that_of_the_classes_that_nearest_pfvs_come_from(photographs, monkeypatch):
    network = random_network("basic")
    pfvs = sample(network, load_pictures(str(photographs)).subset(range(6)), PROFILE)
    block = "layer3.0"
    # Untrained, the network says one class of all of them.
    monkeypatch.setattr(type(pfvs), "predictions", lambda self: torch.arange(6) % 5)
    x, beta = pfvs.vectors(block), network.bn_shift(block)
    concepts = Concepts(torch.randn(5, x.shape[1]), beta, torch.zeros(len(x)), block)
    importance, classes = torch.tensor([[5.0, 4, 0, 1, 2], [0, 1, 5, 2, 4]]), [3, 4]
    among = pfvs.picture_ids(block) != 1
    values = likeness(pfvs, concepts, importance, classes, among=among, first=2, count=3)
    cosine = torch.nn.functional.cosine_similarity
    for row, label, value in zip(importance, classes, values, strict=True):
        alike = []
        for q in row.argsort(descending=True)[:2]:
            near = cosine(x - beta, concepts.vectors[q][None]).masked_fill(~among, -2)
            for n in near.argsort(descending=True)[:3]:
                other = pfvs.predictions()[pfvs.picture_ids(block)[n]]
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


def test_scores_on_a_mask_by_their_definitions():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(5, 6, 7, generator=generator)
    masks = torch.rand(5, 6, 7, generator=generator) < 0.3
    mass, rank = on_mask(maps, masks)
    for n in range(5):
        positive, inside = maps[n].clamp(min=0).numpy(), masks[n].numpy()
        assert mass[n] == pytest.approx(positive[inside].sum() / positive.sum(), abs=1e-6)
        best = set(np.argsort(positive.flatten())[-inside.sum() :].tolist())
        hits = best & set(np.flatnonzero(inside).tolist())
        assert rank[n] == pytest.approx(len(hits) / inside.sum())


def test_scores_have_ends_and_no_answer_where_there_is_none():
    mask = torch.zeros(3, 2, 2, dtype=torch.bool)
    mask[:2, 0] = True
    at = mask.float()
    assert [s.tolist()[:2] for s in on_mask(torch.stack([at[0], 1 - at[1], at[2]]), mask)] == [
        [1.0, 0.0], [1.0, 0.0]
    ]  # fmt: skip
    for nothing in on_mask(torch.stack([-at[0], at[1], torch.ones(2, 2)]), mask):
        assert nothing.isnan().tolist() == [True, False, True]
    with pytest.raises(ValueError, match="of one shape, got"):
        on_mask(at, mask[:2])


def test_a_name_is_of_the_concept_that_holds_its_pfv_at_any_level(photographs, tmp_path):
    block, path = "layer3.0", tmp_path / "names.json"
    pfvs = sample(random_network(), load_pictures(str(photographs)), PROFILE)
    concepts = {block: fit_concepts(pfvs, PROFILE)[block]}

    def entry(name, row, **other):
        picture = int(pfvs.picture_ids(block)[row])
        place = {"picture": pfvs.pictures.paths[picture], "box": pfvs.pictures.boxes[picture]}
        position = pfvs.positions(block)[row].tolist()
        return {"name": name, "block": block, "position": position} | place | other

    row, column = pfvs.positions(block)[0].tolist()
    elsewhere = [{"position": place} for place in ([99, column], [row, 99])]
    elsewhere += [{"box": [0, 0, 0.5, 0.5]}, {"block": "layer1.1"}]
    entries = [entry("first", 0), entry("last", -1)] + [entry("no", 0, **o) for o in elsewhere]
    path.write_text(json.dumps(entries))
    for level in (None, 2, 1):
        here = concepts[block].at(level)
        one, other = (int(here.assigned[row]) for row in (0, -1))
        expected = {f"{block}/{one}": "first", f"{block}/{other}": "last"}
        if one == other:
            expected = {f"{block}/{one}": "first, last"}
        assert named(pfvs, {block: here}, path) == expected
    assert one == other, "of one concept, both names were seen"
    assert named(pfvs, concepts) == {}, "the sample's names are not of these pictures"

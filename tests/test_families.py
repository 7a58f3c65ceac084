"""families.py and concepts at a level: a tree cut where other photographs give it again."""

from dataclasses import replace

import pytest
import torch
from conftest import random_decomposition, random_network
from torch.nn import functional as F

from gig_helpers import METHODS, Decomposition, attribute, concept_graph, deletion_insertion
from gig_helpers.clustering import BisectingSphericalKMeans
from gig_helpers.concepts import concept_vectors, extract
from gig_helpers.families import agreement, ranks, support, supported, thirds

A, B = "layer3.0", "layer4.0"
TREE = torch.tensor([0, 0, 1, 0, 3, 1, 2, 5, 4, 0, 9, 2])
FAMILY = torch.tensor([0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1])
"""Which of two families each of the twelve atoms is of, by hand: 9 was split off 0, 8 off 4 …"""


@pytest.fixture(scope="module")
def atoms() -> Decomposition:
    """Two pictures in twelve atoms at either of two blocks, whose tree is known."""
    d = random_decomposition(random_network("basic"), {A: 4, B: 2}, pictures=2)
    concepts = {block: replace(here, parents=TREE) for block, here in d.concepts.items()}
    return replace(d, concepts=concepts)


def at(d: Decomposition, level: int | None) -> Decomposition:
    return replace(d, concepts={block: here.at(level) for block, here in d.concepts.items()})


def test_a_photograph_judges_twice_however_many_pfvs_it_has():
    """Those beyond the first two of a judging photograph change nothing."""
    generator = torch.Generator().manual_seed(0)
    x, owner = torch.randn(120, 16, generator=generator), torch.arange(60).repeat_interleave(2)
    classes = owner % 3
    third = thirds(owner, classes, torch.Generator().manual_seed(0))
    (judge, *_) = owner[third == 2].tolist()
    more = torch.randn(60, 16, generator=generator)
    few, many = (
        agreement(
            torch.cat([x, more[:count]]),
            torch.zeros(16),
            torch.cat([owner, torch.full((count,), judge)]),
            torch.cat([classes, torch.full((count,), judge % 3)]),
            levels=(4, 12),
            splits=1,
        )
        for count in (0, 60)
    )
    assert torch.equal(few, many)
    once = (third != 2) | (ranks(owner) == 0)
    parts = (part[once] for part in (owner, classes))
    first = agreement(x[once], torch.zeros(16), *parts, levels=(4, 12), splits=1)
    assert not torch.equal(first, few), "its second one counts"


def test_only_directions_from_beta_count():
    generator = torch.Generator().manual_seed(0)
    x, owner = torch.randn(90, 8, generator=generator).double(), torch.arange(90)
    lengths = 2.0 ** torch.arange(90)[:, None].remainder(5)
    here, there = (
        agreement(part, beta, owner, owner % 3, levels=(4, 8), splits=2)
        for part, beta in (
            (x, torch.zeros(8).double()),
            (lengths * x + 8, torch.full((8,), 8.0).double()),
        )
    )
    assert torch.equal(here, there)


def test_no_two_clusterings_have_one_seed(monkeypatch):
    """Halves stand in one order of classes: with one seed both would draw the same places."""
    seeds, deals = [], []

    def seen(count, *, random_state):
        seeds.append(random_state)
        return BisectingSphericalKMeans(count, random_state=random_state)

    def dealt(photographs, classes, generator):
        deals.append(generator.initial_seed())
        return thirds(photographs, classes, generator)

    monkeypatch.setattr("gig_helpers.families.BisectingSphericalKMeans", seen)
    monkeypatch.setattr("gig_helpers.families.thirds", dealt)
    x, owner = torch.randn(60, 8), torch.arange(60)
    for seed in (0, 7):
        agreement(x, torch.zeros(8), owner, owner % 3, levels=(4,), splits=3, seed=seed)
    assert len(set(seeds)) == len(seeds) == 12 and len(set(deals)) == len(deals) == 6


def test_a_level_that_there_is_not_is_refused(atoms):
    here = atoms.concepts[A]
    for level in (0, 13):
        with pytest.raises(ValueError, match="from 1 to 12"):
            here.at(level)
    with pytest.raises(ValueError, match="no tree"):
        replace(here, parents=None).at(2)


def test_families_of_a_tree_by_hand(atoms):
    assert torch.equal(atoms.concepts[A].at(2).family, FAMILY)
    assert torch.equal(atoms.concepts[A].at(12).family, torch.arange(12))


@pytest.mark.parametrize("level", range(1, 13))
def test_a_familys_relevance_is_the_sum_of_its_atoms(atoms, level):
    families = at(atoms, level)
    for options in ({}, {"positions": True}, {"output": "probability"}):
        of_atoms = attribute(atoms, A, [3, 0], points=4, **options)
        of_families = attribute(families, A, [3, 0], points=4, **options)
        family = families.concepts[A].family
        by_hand = torch.stack([of_atoms[..., family == f].sum(-1) for f in range(level)], -1)
        torch.testing.assert_close(of_families, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", [1, 2, 5, 12, None])
def test_completeness_at_every_level(atoms, level):
    families = at(atoms, level)
    relevance = attribute(families, A, [3], tolerance=0.001)[:, 0]
    assert relevance.shape == (2, level or 12)
    segment = atoms.network.segment(A)
    here = atoms.concepts[A]
    ends = (segment(here.decode(scale * atoms.codes[A]))[:, 3] for scale in (1, 0))
    change = torch.sub(*ends)
    assert ((relevance.sum(1) - change).abs() <= 0.002 * change.abs()).all()


def test_a_family_as_a_target_is_its_own_centroids_direction():
    generator = torch.Generator().manual_seed(0)
    x, beta = torch.randn(200, 16, generator=generator), torch.randn(16, generator=generator)
    concepts = extract(x, beta, 24)
    for level in (1, 3, 10, 24):
        fresh = BisectingSphericalKMeans(level, random_state=0).fit(x - beta)
        labels = torch.from_numpy(fresh.labels_)
        # The average of all its PFVs' unit vectors, as a concept of that many would be.
        expected = concept_vectors(x, labels, beta)
        torch.testing.assert_close(concepts.at(level).directions, expected)
        members = [concepts.at(level).members(f).tolist() for f in range(level)]
        assert members == [(labels == f).nonzero()[:, 0].tolist() for f in range(level)]
        classes = torch.randint(4, (200,), generator=generator)
        torch.testing.assert_close(
            concepts.at(level).class_entropy(classes),
            replace(concepts, labels=labels, vectors=expected, parents=None).class_entropy(classes),
        )


def test_edges_between_families(atoms):
    families = at(atoms, 3)
    target = families.concepts[B].directions[[2]]
    by_hand = torch.stack([
        torch.autograd.functional.jacobian(
            lambda x: (atoms.network.segment(A, B)(x).sum(1) @ F.normalize(target).T).sum(),
            atoms.reconstruction(A)[[n]],
        )[0]
        for n in range(2)
    ])  # fmt: skip
    each = (by_hand @ atoms.concepts[A].vectors.T * atoms.codes[A]).sum(dim=1)
    brought = attribute(families, A, (B, 2), method="gradient")[:, 0]
    torch.testing.assert_close(brought, families.concepts[A].gathered(each), rtol=1e-3, atol=1e-4)


def test_taking_a_family_out_takes_all_its_atoms(atoms):
    families = at(atoms, 2)
    numbers = (FAMILY == 1).nonzero()[:, 0].tolist()
    assert torch.equal(families.without({A: 1}).codes[A], atoms.without({A: numbers}).codes[A])
    torch.testing.assert_close(families.logits({A: 1, B: [0]}), atoms.logits({
        A: numbers, B: (FAMILY == 0).nonzero()[:, 0].tolist()
    }))  # fmt: skip


def test_ablation_and_curves_of_families(atoms):
    families, segment = at(atoms, 3), atoms.network.segment(A)
    relevance = attribute(families, A, [[1], [2]], method="ablation")[:, 0]
    with torch.no_grad():
        whole = segment(families.reconstruction(A))
        for f in range(3):
            lost = whole - segment(families.without({A: f}).reconstruction(A))
            expected = lost[[0, 1], [1, 2]]
            torch.testing.assert_close(relevance[:, f], expected, rtol=1e-3, atol=1e-4)
    order = torch.tensor([[[1.0, 3.0, 2.0]]] * 2)
    curves = deletion_insertion(families, A, [[1], [2]], order, tolerance=0)["logit"]
    for n, label in ((0, 1), (1, 2)):
        gone = [{}, {A: 1}, {A: [1, 2]}, {A: [0, 1, 2]}]
        states = [families[[n]].without(out).reconstruction(A) for out in gone]
        expected = torch.cat([segment(x)[:, label] for x in states]).double()
        torch.testing.assert_close(
            curves.deletion.at(torch.arange(4) / 3)[n, 0], expected, rtol=1e-4, atol=1e-4
        )


def test_every_method_answers_for_families(atoms):
    families = at(atoms, 4)
    for name in METHODS:
        assert attribute(families, A, [0, 1], method=name).shape == (2, 2, 4), name
        assert attribute(families, A, (B, [0, 3]), method=name).shape == (2, 2, 4), name


def test_a_graph_of_families(atoms):
    graph = concept_graph(at(atoms, 3), [2, 2], top=3, points=2)
    numbers = [d["concept"] for _, d in graph.nodes(data=True) if d["kind"] == "concept"]
    assert numbers and max(numbers) < 3
    relevance = attribute(atoms, B, [2], points=2, rest=True)[:, 0].mean(0)
    for node, data in graph.nodes(data=True):
        if data.get("block") == B:
            own = atoms.concepts[B].at(3).atoms(data["concept"])
            assert data["relevance"][0] == pytest.approx(float(relevance[own].sum()), rel=1e-3)
            assert graph.edges[node, "class/2"]["raw"] == data["relevance"][0]


def planted(kinds: int, photographs: int, each: int = 6, noise: float = 0.15, seed: int = 0):
    """PFVs around a few directions that any photograph may show; their photographs and classes."""
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(kinds, 32, generator=generator), dim=1)
    chosen = torch.randint(kinds, (photographs * each,), generator=generator)
    x = directions[chosen] + noise * torch.randn(len(chosen), 32, generator=generator)
    owner = torch.arange(photographs).repeat_interleave(each)
    return x, owner, owner % (photographs // 4)


def test_as_many_families_as_were_planted_are_found_again():
    x, owner, classes = planted(kinds=8, photographs=240)
    levels = (4, 8, 16, 64, 200)
    excess = agreement(x, torch.zeros(32), owner, classes, levels=levels)
    assert excess.shape == (5, 5)
    by_level = dict(zip(levels, excess.mean(0).tolist(), strict=True))
    assert by_level[8] > 0.15, "the planted level comes back"
    assert abs(by_level[200]) < 0.05, "one or two PFVs each agree no more than blind draws"
    assert max(by_level, key=by_level.get) in (4, 8)


def test_nothing_comes_back_where_nothing_was_planted():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1200, 64, generator=generator)
    owner = torch.arange(200).repeat_interleave(6)
    excess = agreement(x, torch.zeros(64), owner, owner % 50, levels=(32, 128))
    assert (excess.mean(0).abs() < 0.05).all()


def test_thirds_hold_each_class_alike_and_no_photograph_twice():
    owner = torch.arange(90).repeat_interleave(4)
    third = thirds(owner, owner % 10, torch.Generator().manual_seed(0))
    for photograph in range(90):
        assert len(third[owner == photograph].unique()) == 1
    for label in range(10):
        counts = torch.bincount(third[(owner % 10) == label], minlength=3)
        assert (counts == 12).all(), "nine photographs of four PFVs, three to each third"
    alone = torch.arange(30)  # classes of one photograph
    assert len(thirds(alone, alone, torch.Generator().manual_seed(0)).unique()) == 3
    of_one = thirds(alone, 0 * alone, torch.Generator().manual_seed(0))
    assert len(((of_one - alone) % 3).unique()) == 3, "in random order, and not in turn"


def test_levels_too_large_for_a_third_are_left_out():
    x, owner, _ = planted(kinds=3, photographs=30, each=2)  # twenty PFVs a third
    excess = agreement(x, torch.zeros(32), owner, owner % 10, levels=(4, 10, 11, 40), splits=2)
    assert excess[:, :2].isfinite().all() and excess[:, 2:].isnan().all()


def test_support_by_hand():
    # Four atoms: of photographs {0, 1}, {2}, {3, 4}, {5}; the third was split off the first. Of
    # photographs 2 and 5 there are three PFVs each.
    labels = torch.tensor([0, 0, 1, 2, 2, 3, 1, 1, 3, 3])
    photographs = torch.tensor([0, 1, 2, 3, 4, 5, 2, 2, 5, 5])
    table = support(
        labels, torch.tensor([0, 0, 0, 1]), photographs,
        torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.2, 0.0]]).double(), levels=(2, 3, 4),
    )  # fmt: skip
    assert table["photographs"].tolist() == [2.0, 2.0, 1.0]  # torch's median is the lower one
    assert table["alone"].tolist() == [0, 0, 0.5]
    assert table["pfvs"].tolist() == [4, 2, 2]
    assert table["excess"].tolist() == pytest.approx([0.2, 0.2, 0.0])
    # Student's t with one degree of freedom: 12.706 standard errors of 0.1.
    assert table["low"].iloc[0] == pytest.approx(0.2 - 12.706 * 0.1, abs=1e-3)
    assert not table["supported"].any(), "two photographs are too few"


@pytest.mark.parametrize(
    ("photographs", "splits", "holds"),
    [
        ([5, 5], [], True), ([4, 5, 5], [], True), ([4, 4, 80], [], False),
        ([1, *[5] * 9], [], True), ([1, 1, *[5] * 8], [], False),
        ([9, *[10] * 9], [], True), ([10] * 10, [], False), ([10] * 10, [0.06, 0.06], True),
        ([10] * 10, [0.05, 0.05], False), ([10] * 10, [0.0, 0.2], False),
        ([9, 91], [0.2, 0.2], False),
    ],
)  # fmt: skip
def test_what_supports_a_level(photographs, splits, holds):
    """Five of the median family, ten from 100 on and an interval above 0.05; a tenth alone."""
    labels = torch.arange(len(photographs)).repeat_interleave(torch.tensor(photographs))
    parents, level = torch.zeros(len(photographs)).long(), len(photographs)
    excess = torch.tensor(splits, dtype=torch.double)[:, None]
    table = support(labels, parents, torch.arange(len(labels)), excess, levels=(level,))
    assert bool(table["supported"].item()) is holds


def test_the_largest_supported_level_is_taken():
    x, owner, classes = planted(kinds=8, photographs=240)
    concepts = extract(x, torch.zeros(32), 400)
    levels = (4, 8, 16, 64, 200)
    excess = agreement(x, torch.zeros(32), owner, classes, levels=levels)
    table = support(concepts.labels, concepts.parents, owner, excess, levels)
    chosen = supported(table)
    assert chosen in (8, 16) and table.loc[chosen, "low"] > 0.05
    assert supported(table.assign(supported=False)) is None
    few = owner < 40  # a small set: only the counts decide
    concepts = extract(x[few], torch.zeros(32), 80)
    counted = support(concepts.labels, concepts.parents, owner[few], torch.empty(0, 5), levels)
    largest = supported(counted)
    assert counted.loc[largest, "photographs"] >= 5 and counted.loc[largest, "alone"] <= 0.1
    beyond = counted[counted.index > largest]
    assert ((beyond["photographs"] < 5) | (beyond["alone"] > 0.1)).all()

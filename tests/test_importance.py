"""importance.py: on a linear network by hand, and every method on a real architecture."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import random_network, sparse_codes
from linear import GAMMA, U, V, linear
from torch import nn

from gig_helpers import METHODS, Concepts, Decomposition, Network, attribute, method
from gig_helpers.gig import class_relevance, gig


@pytest.fixture
def by_hand():
    """The picture of the linear network, with one concept of block b."""
    return linear(U, V, later=torch.tensor([[0.0, 3.0]]).double())


@pytest.mark.parametrize("name", ["gig", "gradient", "ablation"])
def test_importance_of_a_linear_network(by_hand, name):
    relevance = attribute(by_hand, "a", [0, 1], method=name)
    torch.testing.assert_close(relevance[:, :1], GAMMA)
    torch.testing.assert_close(attribute(linear(-U, V), "a", 0, method=name), -GAMMA)
    assert (relevance[:, 1] == 0).all()
    # Σ_p u_pq ⟨A v_q, (0, 1)⟩
    brought = attribute(by_hand, "a", ("b", 0), method=name)
    torch.testing.assert_close(brought, torch.tensor([[[0, 1, -1, 0]]]).double())


def test_activation_is_blind_to_the_target():
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0])[:, None]  # by position
    mass = attribute(linear(signs * U, V), "a", [0, 1], method="activation")
    torch.testing.assert_close(mass[0], torch.tensor([[3, 1, 1, 0]] * 2).double())


def test_cosine_of_concepts_alone():
    d = linear(0 * U, V, later=torch.tensor([[2.0, 0.0]]).double())
    # A v_q = (1, 0), (0, 1), (2, −1), (3, 0)
    expected = torch.tensor([1, 0, 2 / math.sqrt(5), 1]).double()
    cosines = attribute(d, "a", ("b", 0), method="cosine")
    torch.testing.assert_close(cosines[0, 0], expected)
    # Only logit 0 moves: by 1, 2, −4 and −1.
    cosines = attribute(d, "a", 0, method="cosine")
    torch.testing.assert_close(cosines[0, 0], torch.tensor([1, 1, -1, -1]).double())


def test_random_importance_is_seeded(by_hand):
    first, again, other = (
        attribute(by_hand, "a", 0, method="random", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.dtype == by_hand.codes["a"].dtype == torch.float64


def test_random_in_use_puts_what_is_not_used_last():
    d = linear(torch.cat([-U * torch.tensor([1, 0, 1, 0]), U * torch.tensor([0, 1, 0, 1])]), V)
    whole, used = (
        attribute(d, "a", 0, method=name, seed=1)[:, 0] for name in ("random", "random in use")
    )
    for n, own in enumerate(([0, 2], [1])):
        assert torch.equal(used[n, own], whole[n, own]) and used[n].count_nonzero() == len(own)


def test_methods_say_what_they_are_and_cost():
    assert next(iter(METHODS)) == "gig", "the paper's comes first"
    for each in METHODS.values():
        assert each.importance.__doc__ and each.cost
    dear = [name for name, each in METHODS.items() if each.per_concept]
    assert dear == ["cosine", "ablation"]


def test_a_method_is_one_function(by_hand):
    @method("mass", cost="nothing")
    def mass(asked):
        lengths = asked.concepts.vectors.norm(dim=1)
        return (asked.codes.sum(dim=1) * lengths)[:, None].expand(*asked.targets.shape, -1)

    try:
        values = attribute(by_hand, "a", [1, 0], method="mass")
        torch.testing.assert_close(values[0], torch.tensor([[3, 1, 1, 0]] * 2).double())
    finally:
        METHODS.pop("mass")


@pytest.fixture(scope="module")
def real():
    """Two pictures of a small random network, in six concepts of either of two blocks."""
    network = random_network("v1.5", torch.float64, width_per_group=8)
    concepts = {
        "layer2.0": Concepts(torch.randn(6, 512), torch.randn(512), torch.arange(6)),
        "layer3.0": Concepts(torch.randn(3, 1024), torch.randn(1024), torch.arange(3)),
    }
    codes = {"layer2.0": sparse_codes(2, 16, 6, share=0.5), "layer3.0": torch.ones(2, 4, 3)}
    return Decomposition(network, torch.randn(2, 3, 64, 64), concepts, codes)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_a_real_architecture(real, name):
    brought = attribute(real, "layer2.0", ("layer3.0", [0, 1, 2]), method=name)
    assert brought.shape == (2, 3, 6) and brought.isfinite().all()
    relevance = attribute(real, "layer2.0", [[1], [3]], method=name)
    assert relevance.shape == (2, 1, 6) and relevance.isfinite().all()
    # The targets of each picture are those that it has where all have them.
    both = attribute(real, "layer2.0", [1, 3], method=name, points=4)
    each = attribute(real, "layer2.0", [[1, 1], [3, 3]], method=name, points=4)
    if not name.startswith("random"):
        torch.testing.assert_close(each[:, 0], both[[0, 1], [0, 1]])


def test_later_families_are_asked_for_by_their_own_directions(real):
    here, there = real.concepts["layer2.0"], real.concepts["layer3.0"]
    families = replace(there, parents=torch.tensor([0, 0, 1]), level=2)
    d = replace(real, concepts={"layer2.0": here, "layer3.0": families})
    found = attribute(d, "layer2.0", ("layer3.0", [0, 1]), points=4)
    given = d.network, d.codes["layer2.0"], here.vectors, "layer2.0", "layer3.0"
    of_families, of_atoms = (
        gig(*given, vectors, beta=here.beta, points=4)
        for vectors in (families.directions, there.vectors[:2])
    )
    torch.testing.assert_close(found, of_families)
    assert not torch.allclose(found, of_atoms)


@pytest.mark.parametrize("level", [None, 2])
@pytest.mark.parametrize("target", [1, ("layer3.0", [0, 2])], ids=["class", "concepts"])
def test_with_the_rest_relevances_add_up_to_the_networks_own_change(real, target, level):
    """Of the picture's own map, not of the reconstruction, and at every level of the tree."""
    here = real.concepts["layer2.0"]
    tree = replace(here, parents=torch.tensor([0, 0, 0, 1, 1, 2]), level=level)
    codes = {"layer2.0": sparse_codes(2, 64, 6, share=0.5), "layer3.0": torch.ones(2, 16, 3)}
    d = replace(real, concepts={**real.concepts, "layer2.0": tree}, codes=codes)
    brought = attribute(d, "layer2.0", target, rest=True, tolerance=0.01)
    numbers = [[1]] * 2 if target == 1 else [[0, 2]] * 2
    later = None if target == 1 else "layer3.0"
    segment = d.network.segment("layer2.0", later)
    x = d.network.preactivations(d.images, ["layer2.0"])["layer2.0"].flatten(2).mT
    start = (0 * x + here.beta).to(x)
    with torch.no_grad():
        change = segment(x) - segment(start)
    if later is None:
        expected = change[:, [1]]
    else:
        vectors = torch.nn.functional.normalize(d.concepts[later].vectors[[0, 2]], dim=1)
        expected = change.sum(dim=1) @ vectors.T
    assert brought.shape == (2, len(numbers[0]), len(tree) + 1)
    torch.testing.assert_close(brought.sum(dim=2), expected, rtol=0.0101, atol=0)
    gradient = attribute(d, "layer2.0", target, method="gradient", rest=True)
    assert gradient.shape == brought.shape and not torch.allclose(gradient, brought, rtol=1e-2)


def test_paths_begin_at_the_concepts_own_beta(real):
    """β one beside the network's: as the function of tensors does it with that β, and complete."""
    network, block, target = real.network, "layer2.0", "layer3.0"
    vectors, above = real.concepts[block].vectors, real.concepts[target].vectors
    shift = network.bn_shift(block)
    here, beside = (
        replace(
            real, concepts=real.concepts | {block: Concepts(vectors, beta, torch.arange(6), block)}
        )
        for beta in (shift, shift + 1)
    )
    given = network, real.codes[block], vectors, block
    for options in ({"points": 4}, {"tolerance": 0.01}):
        relevance = attribute(beside, block, [1, 3], **options)
        wanted = class_relevance(*given, [1, 3], beta=shift + 1, **options)
        torch.testing.assert_close(relevance, wanted)
        assert not torch.allclose(relevance, attribute(here, block, [1, 3], **options))
        brought = attribute(beside, block, (target, [0, 1, 2]), **options)
        wanted = gig(*given, target, above, beta=shift + 1, **options)
        torch.testing.assert_close(brought, wanted)
    segment, x = network.segment(block), beside.reconstruction(block)
    change = (segment(x) - segment((shift + 1).expand_as(x)))[:, [1, 3]]
    assert ((relevance.sum(dim=2) - change).abs() <= 0.0101 * change.abs()).all()
    for name in ("ablation", "cosine"):
        own, other = (attribute(d, block, [1, 3], method=name) for d in (beside, here))
        assert not torch.allclose(own, other)


def test_options_of_gig_are_handed_on(real):
    block, classes = "layer2.0", [1, 3]
    options = {"points": 3, "output": "probability", "baseline": "zero", "rule": "riemann_middle"}
    here = real.concepts[block]
    kept = attribute(real, block, classes, positions=True, **options)
    assert kept.shape == (2, 2, 16, 6)
    wanted = class_relevance(
        real.network, real.codes[block], here.vectors, block, classes, beta=here.beta,
        positions=True, **options,
    )  # fmt: skip
    torch.testing.assert_close(kept, wanted)
    summed = attribute(real, block, classes, **options)
    torch.testing.assert_close(kept.sum(dim=2), summed)


class MatmulHead(nn.Module):
    """Ten classes by a matrix, which is no linear layer: the last one that is has six channels."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, 2, 1),
            nn.BatchNorm2d(6), nn.ReLU(),
        )  # fmt: skip
        self.w = nn.Parameter(torch.randn(6, 10))

    def forward(self, x):
        return self.body(x).mean(dim=(2, 3)) @ self.w


@pytest.mark.parametrize("name", METHODS)
def test_the_network_says_how_many_classes_there_are(name):
    torch.manual_seed(0)
    network = Network(MatmulHead(), device="cpu", input_size=(16, 16))
    block = network.blocks[0]
    concepts = Concepts(torch.randn(3, 6), network.bn_shift(block), torch.arange(3), block)
    codes = {block: sparse_codes(1, 64, 3)}
    d = Decomposition(network, torch.randn(1, 3, 16, 16), {block: concepts}, codes)
    relevance = attribute(d, block, 9, method=name, points=8)
    assert relevance.shape == (1, 1, 3) and relevance.isfinite().all() and relevance.any()
    with pytest.raises(ValueError, match=r"classes \[10\] leave 0 … 9"):
        attribute(d, block, 10, method=name)


@pytest.mark.parametrize(
    "source, target, error, match",
    [
        ("a", [2], ValueError, r"classes \[2\] leave 0 … 1"),
        ("a", -1, ValueError, r"classes \[-1\] leave 0 … 1"),
        ("a", [], ValueError, "targets are numbers"),
        ("a", 0.5, ValueError, "targets are numbers"),
        ("a", [[0], [1]], ValueError, r"expected \(T,\), or \(N, T\) of 1"),
        ("a", ("b", 1), ValueError, r"concepts of b \[1\] leave 0 … 0"),
        ("c", 0, KeyError, "'c' is not decomposed: there are a, b"),
        ("a", ("c", 0), KeyError, "'c' is not decomposed"),
    ],
)
def test_bad_input_is_named(by_hand, source, target, error, match):
    with pytest.raises(error, match=match):
        attribute(by_hand, source, target)
    with pytest.raises(ValueError, match="unknown method 'best'"):
        attribute(by_hand, "a", 0, method="best")


def test_what_network_or_codes_do_not_allow_is_named(real):
    with pytest.raises(ValueError, match="layer2.0 must come after source layer3.0"):
        attribute(real, "layer3.0", ("layer2.0", 0))
    few = real.codes | {"layer2.0": real.codes["layer2.0"][:, :5]}
    with pytest.raises(ValueError, match="5 positions are no map of the shape of"):
        attribute(replace(real, codes=few), "layer2.0", 0)

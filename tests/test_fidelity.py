"""report/fidelity.py: what is linear adds up, noise does not."""

from dataclasses import replace

import pytest
import torch
from conftest import random_decomposition, tiny_network
from linear import GAMMA, U, V, concepts_of, linear
from scipy import stats

from gig_helpers import attribute
from gig_helpers.report.fidelity import class_fidelity


@pytest.fixture(scope="module")
def parts():
    """Two pictures in thirty concepts, their importance for class 0, and noise."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(2, 4, 30, generator=generator)
    d = linear(codes, concepts_of(torch.randn(30, 3, generator=generator).double()))
    noise = torch.randn(2, 1, 30, generator=generator).double()
    return d, attribute(d, "a", 0), noise


def test_fidelity_of_a_linear_network_is_one(parts):
    d, gamma, noise = parts
    both = class_fidelity(d, "a", [0, 0], torch.cat([gamma, -gamma], 1), subsets=50)
    assert class_fidelity(d, "a", [0, 0], gamma, subsets=2).shape == (2, 1), "two are enough"
    of_one = class_fidelity(d, "a", [0, 0], gamma, fraction=1 / gamma.shape[2])
    torch.testing.assert_close(of_one, torch.ones_like(of_one), msg="sets of one concept")
    expected = torch.tensor([[1.0, -1.0]] * 2).double()
    torch.testing.assert_close(both, expected, rtol=0, atol=1e-9)
    of_noise = class_fidelity(d, "a", [0, 0], noise)
    assert of_noise.shape == (2, 1) and (of_noise.abs() < 0.9).all()


def test_methods_side_by_side_are_as_alone(parts):
    d, gamma, noise = parts
    together = class_fidelity(d, "a", [0, 0], torch.cat([noise, gamma], 1))
    torch.testing.assert_close(together[:, :1], class_fidelity(d, "a", [0, 0], noise))
    torch.testing.assert_close(together[:, 1], torch.ones(2).double(), rtol=0, atol=1e-9)


def test_it_is_spearmans_correlation_of_sums_and_losses(parts):
    d, _, noise = parts
    correlation = class_fidelity(d, "a", [0, 0], noise, subsets=40, seed=5)
    generator = torch.Generator().manual_seed(5)
    sets = [torch.randperm(30, generator=generator)[:6] for _ in range(40)]  # a fifth of them
    # The network is linear: a set's loss is Σ_{q∈S} Σ_p u_pq ⟨M_0, v_q⟩.
    brings = d.codes["a"].sum(1) * (d.concepts["a"].vectors @ d.network.M[0])
    for n in range(2):
        sums, losses = ([float(v[s].sum()) for s in sets] for v in (noise[n, 0], brings[n]))
        wanted = stats.spearmanr(sums, losses).statistic
        assert correlation[n, 0] == pytest.approx(wanted)


def test_sets_are_taken_out_of_the_reconstruction_each_picture_for_its_class():
    network = tiny_network()
    block = network.blocks[-1]
    d = random_decomposition(network, {block: network.map_size(block)[0]}, 2)
    here, importance = d.concepts[block], torch.randn(2, 1, 12)
    found = class_fidelity(d, block, [1, 3], importance, subsets=30, fraction=0.25, seed=3)
    generator = torch.Generator().manual_seed(3)
    sets = [torch.randperm(12, generator=generator)[:3] for _ in range(30)]
    for n, label in enumerate((1, 3)):
        left = [
            d[[n]].codes[block].index_fill(2, some, 0.0) @ here.vectors + here.beta for some in sets
        ]
        losses = [-float(network.segment(block)(x)[0, label]) for x in left]
        sums = [float(importance[n, 0, some].sum()) for some in sets]
        wanted = stats.spearmanr(sums, losses).statistic
        assert float(found[n, 0]) == pytest.approx(wanted, abs=0.02), "but for ties by rounding"


def test_families_are_taken_out_whole(parts):
    d = parts[0]
    tree = replace(d.concepts["a"], parents=torch.arange(30) // 3, level=10)
    families = replace(d, concepts={"a": tree})
    found = class_fidelity(families, "a", [0, 0], attribute(families, "a", 0), subsets=50)
    torch.testing.assert_close(found, torch.ones(2, 1).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "importance, options, match",
    [
        (GAMMA, {"fraction": 0.0}, "sets of 0 of 4"),
        (GAMMA, {"fraction": 0.9}, "sets of 4 of 4"),
        (GAMMA, {"subsets": 1, "fraction": 0.5}, "compare 1 sets"),
        (GAMMA[0], {}, r"expected \(1, M, 4\)"),
        (GAMMA[..., :3], {}, r"expected \(1, M, 4\)"),
    ],
)
def test_bad_input_is_named(importance, options, match):
    with pytest.raises(ValueError, match=match):
        class_fidelity(linear(U, V), "a", [0], importance, **options)


def test_a_class_for_each_picture(parts):
    d, gamma, _ = parts
    for classes in ([0], [0, 0, 0]):
        with pytest.raises(ValueError, match="zip"):
            class_fidelity(d, "a", classes, gamma, subsets=2)

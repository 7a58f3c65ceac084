"""report/fidelity.py: what is linear adds up, noise does not."""

import pytest
import torch
from linear import GAMMA, Linear, U, V, concepts_of
from scipy import stats

from gig_helpers.importance import class_importance
from gig_helpers.report.fidelity import class_fidelity


@pytest.fixture(scope="module")
def parts():
    """Two pictures' codes, thirty concepts, their importance for class 0."""
    net, generator = Linear(), torch.Generator().manual_seed(0)
    codes = torch.randn(2, 4, 30, generator=generator)
    concepts = concepts_of(torch.randn(30, 3, generator=generator))
    noise = torch.randn(2, 1, 30, generator=generator)
    return net, codes, concepts, class_importance("gig", net, codes, concepts, [0]), noise


def test_fidelity_of_a_linear_network_is_one(parts):
    *given, gamma, noise = parts
    found = class_fidelity(*given, torch.cat([gamma, -gamma], 1), [0, 0], subsets=50)
    expected = torch.tensor([[1.0, -1.0]] * 2).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    other = class_fidelity(*given, noise, [0, 0])
    assert other.shape == (2, 1) and (other.abs() < 0.9).all()


def test_methods_side_by_side_are_as_alone(parts):
    *given, gamma, noise = parts
    together = class_fidelity(*given, torch.cat([noise, gamma], 1), [0, 0])
    torch.testing.assert_close(together[:, :1], class_fidelity(*given, noise, [0, 0]))
    torch.testing.assert_close(together[:, 1], torch.ones(2).double(), rtol=0, atol=1e-9)


def test_it_is_spearmans_correlation_of_sums_and_losses(parts):
    net, codes, concepts, _, noise = parts
    found = class_fidelity(net, codes, concepts, noise, [0, 0], subsets=40, seed=5)
    generator = torch.Generator().manual_seed(5)
    sets = [torch.randperm(30, generator=generator)[:6] for _ in range(40)]  # a fifth of them
    # The network is linear: a set's loss is Σ_{q∈S} Σ_p u_pq ⟨M_0, v_q⟩.
    brings = codes.double().sum(1) * (concepts.vectors.double() @ net.M[0])
    for n in range(2):
        sums, losses = ([float(v[s].sum()) for s in sets] for v in (noise[n, 0], brings[n]))
        assert found[n, 0] == pytest.approx(stats.spearmanr(sums, losses).statistic)


@pytest.mark.parametrize(
    "importance, options, match",
    [
        (GAMMA[None], {"fraction": 0.0}, "sets of 0 of 4"),
        (GAMMA[None], {"fraction": 1.0}, "sets of 4 of 4"),
        (GAMMA[None], {"subsets": 1, "fraction": 0.5}, "compare 1 sets"),
        (GAMMA, {}, r"expected \(1, T, 4\)"),
        (GAMMA[None, :, :3], {}, r"expected \(1, T, 4\)"),
    ],
)
def test_bad_input_is_named(importance, options, match):
    with pytest.raises(ValueError, match=match):
        class_fidelity(Linear(), U, V, importance, [0], **options)

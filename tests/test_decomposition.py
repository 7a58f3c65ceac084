import warnings

import pytest
import torch
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso

from gig_helpers.decomposition import (
    duality_gap,
    l0_ratio,
    lambda_for,
    lasso_codes,
    lasso_lars_codes,
    objective,
    paper_nonzeros,
    reconstruct,
    relative_l2,
)


def problem(n=12, channels=48, k=200, seed=0, dtype=torch.float64):
    """Concepts that are alike, as cluster averages are, and heavy-tailed PFVs."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    concepts = normal(k, 6) @ normal(6, channels) + normal(k, channels)
    concepts *= torch.exp(0.5 * normal(k, 1))
    codes = normal(n, k) * (torch.rand(n, k, generator=generator) < 0.05)
    x = (codes @ concepts + 0.3 * normal(n, channels)) * torch.exp(0.5 * normal(n, 1))
    return x.to(dtype), concepts.to(dtype)


@pytest.mark.parametrize("lam", [5.0, 20.0, 100.0])
def test_agrees_with_lars(lam):
    x, concepts = problem()
    codes = lasso_codes(x, concepts, lam, tol=1e-9)
    lars = lasso_lars_codes(x, concepts, lam)
    torch.testing.assert_close(
        objective(x, concepts, codes, lam), objective(x, concepts, lars, lam), rtol=1e-8, atol=0
    )
    # The optimum is unique here, so the codes agree too: to the root of the objective's tolerance.
    torch.testing.assert_close(codes, lars, rtol=1e-3, atol=1e-3)


def test_is_scikit_learns_lasso_with_lam_over_channels():
    x, concepts = problem(n=5)
    model = Lasso(alpha=3.0 / x.shape[1], fit_intercept=False, tol=1e-12, max_iter=100_000)
    expected = torch.from_numpy(model.fit(concepts.T.numpy(), x.T.numpy()).coef_)
    torch.testing.assert_close(
        lasso_codes(x, concepts, 3.0, tol=1e-10), expected, rtol=1e-3, atol=1e-4
    )


def test_orthonormal_concepts_by_hand():
    # With V = identity the minimum is soft thresholding.
    x = torch.tensor([[3.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    codes = lasso_codes(x, torch.eye(3), 1.0)
    assert codes.tolist() == [[2.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    shifted = lasso_codes(x + 4, torch.eye(3), 1.0, beta=torch.full((3,), 4.0))
    torch.testing.assert_close(shifted, codes)


def test_float32_reaches_its_tolerance():
    x, concepts = problem(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = lasso_codes(x, concepts, 10.0)
    assert codes.dtype == torch.float32
    # 1e-5 asked for, measured in single precision; its rounding moves the true gap by half that.
    gap = duality_gap(x.double(), concepts.double(), codes.double(), 10.0)
    assert gap.max() < 2e-5


def test_large_working_sets():
    # A batch of systems of this size is where MKL's LU hung, or gave NaN, with two threads.
    x, concepts = problem(n=3, channels=400, k=300)
    codes = lasso_codes(x, concepts, 5.0)
    assert (codes != 0).sum(dim=1).max() > 150
    assert duality_gap(x, concepts, codes, 5.0).max() <= 1e-5  # what was asked for


def test_gap_bounds_the_distance_to_the_optimum():
    x, concepts = problem()
    best = objective(x, concepts, lasso_lars_codes(x, concepts, 5.0), 5.0)
    rough = lasso_codes(x, concepts, 5.0, tol=1e-2)
    noisy = torch.where(rough != 0, rough * 1.1, 0)
    for codes in (rough, noisy, torch.zeros_like(rough)):
        value = objective(x, concepts, codes, 5.0)
        gap = duality_gap(x, concepts, codes, 5.0)
        assert (gap * value >= value - best - 1e-9 * value).all()
    assert duality_gap(x, concepts, noisy, 5.0).mean() > 1e-3


def test_optimality_conditions():
    x, concepts = problem()
    lam = 10.0
    codes = lasso_codes(x, concepts, lam, tol=1e-12)
    correlation = (x - codes @ concepts) @ concepts.T
    used = codes != 0
    # A gap of 1e-12 leaves the conditions to its root, 1e-6, times the scale of the problem.
    torch.testing.assert_close(correlation[used], lam * codes[used].sign(), rtol=1e-4, atol=0)
    assert correlation[~used].abs().max() <= lam * (1 + 1e-4)


def test_codes_do_not_depend_on_the_batch():
    x, concepts = problem()
    codes = lasso_codes(x.reshape(4, 3, -1), concepts, 10.0, tol=1e-10)
    assert codes.shape == (4, 3, 200)
    alone = torch.stack([lasso_codes(row, concepts, 10.0, tol=1e-10) for row in x])
    torch.testing.assert_close(codes.reshape(12, -1), alone, rtol=1e-4, atol=1e-4)


def test_equal_and_zero_concepts():
    x, concepts = problem(k=20)
    doubled = torch.cat([concepts, concepts, torch.zeros(3, 48, dtype=concepts.dtype)])
    codes = lasso_codes(x, doubled, 2.0, tol=1e-9)
    torch.testing.assert_close(
        objective(x, doubled, codes, 2.0),
        objective(x, concepts, lasso_codes(x, concepts, 2.0, tol=1e-9), 2.0),
        rtol=1e-8,
        atol=0,
    )
    assert not codes[:, 40:].any()


def test_large_lam_gives_zeros():
    x, concepts = problem()
    largest = float((x @ concepts.T).abs().max())
    assert not lasso_codes(x, concepts, largest * 1.001).any()
    assert lasso_codes(x, concepts, largest * 0.99).any()


def test_warns_when_stopped_early():
    x, concepts = problem()
    with pytest.warns(ConvergenceWarning, match="relative duality gap"):
        lasso_codes(x, concepts, 5.0, max_iter=1)


@pytest.mark.parametrize("wanted", [1, 5, 10])
def test_lambda_for_gives_the_count(wanted):
    x, concepts = problem(n=60)
    lam = lambda_for(x, concepts, wanted, rtol=0.05)
    lars = sparse_encode(
        x.numpy(), concepts.numpy(), algorithm="lasso_lars", alpha=lam, max_iter=500
    )
    # 0.05 as asked; as much again for codes that a tolerance of 1e-4 leaves just above zero.
    assert abs((lars != 0).sum(1).mean() - wanted) <= 0.1 * wanted


def test_lambda_for_bad_input():
    x, concepts = problem()
    for wanted in (0, 49):
        with pytest.raises(ValueError, match="at most min"):
            lambda_for(x, concepts, wanted)
    with pytest.raises(ValueError, match="equals beta"):
        lambda_for(torch.ones(3, 48), concepts.float(), 2, beta=torch.ones(48))
    with pytest.raises(ValueError, match="no lam gives 1.5"):
        lambda_for(x[:1], concepts, 1.5)


def test_measures_by_hand():
    concepts = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    codes = torch.tensor([[3.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    x_hat = reconstruct(codes, concepts, torch.tensor([0.0, 1.0]))
    assert x_hat.tolist() == [[3.0, 5.0], [0.0, 1.0]]
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    torch.testing.assert_close(relative_l2(x, x_hat), torch.tensor([0.2, 0.5]))
    torch.testing.assert_close(l0_ratio(codes), torch.tensor([1 / 3, 1.0]))
    with pytest.raises(ValueError, match="shapes differ"):
        relative_l2(x, x_hat[0])


def test_counts_follow_from_table_1():
    # (1 − l0 ratio) · 8C of the row "Ours", rounded.
    for block, ratio, channels in (
        ("layer1.1", 0.9947, 256),
        ("layer2.2", 0.9961, 512),
        ("layer3.4", 0.9962, 1024),
        ("layer4.2", 0.9936, 2048),
    ):
        assert paper_nonzeros(block) == round((1 - ratio) * 8 * channels)
    assert paper_nonzeros("layer1.0") == paper_nonzeros("layer1.2") == 11
    assert paper_nonzeros("layer2.3") == 16 and paper_nonzeros("layer3.5") == 31
    with pytest.raises(KeyError, match="layer7"):
        paper_nonzeros("layer7.0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, v: (x * torch.nan, v, 1.0), "x − beta holds NaN"),
        (lambda x, v: (x, v / 0, 1.0), "concepts holds NaN or infinite"),
        (lambda x, v: (x[:, :5], v, 1.0), r"x must be \(..., 48\)"),
        (lambda x, v: (x[:0], v, 1.0), "not empty"),
        (lambda x, v: (x, v[:0], 1.0), "concepts must be"),
        (lambda x, v: (x, v, 0.0), "lam must be a positive number"),
        (lambda x, v: (x, v, float("nan")), "lam must be a positive number"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        lasso_codes(*change(*problem()))


def test_bad_beta():
    x, concepts = problem()
    with pytest.raises(ValueError, match=r"beta must be \(48,\)"):
        lasso_codes(x, concepts, 1.0, beta=torch.zeros(3))

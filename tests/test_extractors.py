"""extractors: one interface, and each does what its name says."""

import sys
from dataclasses import fields, replace
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from scipy.optimize import nnls
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from gig_helpers import EXTRACTORS
from gig_helpers.codes import relative_l2
from gig_helpers.concepts import extract, load, save, tune
from gig_helpers.extractors import overcomplete
from gig_helpers.extractors import sae as sae_module
from gig_helpers.extractors.dictionary import _update, dictionary_learning
from gig_helpers.extractors.sae import PATIENCE, sparse_autoencoder, train, unused
from gig_helpers.extractors.simple import kmeans, random_pfvs


def pfvs(n=300, channels=12, directions=16, seed=0):
    """Sums of two of a few directions, off the origin: what every method can learn."""
    generator = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(directions, channels, generator=generator), dim=1)
    picks = torch.rand(n, directions, generator=generator).topk(2).indices
    weights = 2 + 4 * torch.rand(n, 2, generator=generator)
    x = (weights[..., None] * atoms[picks]).sum(1)
    noise = 0.05 * torch.randn(n, channels, generator=generator)
    beta = torch.linspace(-1, 1, channels)
    return x + noise + beta, beta


missing = pytest.mark.skipif(not find_spec("overcomplete"), reason="the extra is not installed")
each_fit = pytest.mark.parametrize(
    "fit",
    [
        pytest.param(
            each.fit, id=name, marks=[missing] if name in overcomplete.NEED_PACKAGE else []
        )
        for name, each in EXTRACTORS.items()
    ],
)


@each_fit
def test_same_interface(fit):
    x, beta = pfvs()
    concepts = fit(x, beta, 20, 0)
    # There are no more than 12 components of either kind.
    count = 12 if fit in (overcomplete.pca, overcomplete.ica) else 20
    assert concepts.vectors.shape == (count, 12) and concepts.vectors.dtype == x.dtype
    assert concepts.beta.shape == (12,) and concepts.labels.shape == (300,)
    assert 0 <= concepts.labels.min() and concepts.labels.max() < count
    assert torch.isfinite(concepts.vectors).all()
    assert concepts.lam is None
    torch.testing.assert_close(fit(x, beta, 20, 0).vectors, concepts.vectors)
    assert fit(x, beta, 20, block="layer4.2").block == "layer4.2"
    if fit is not overcomplete.pca:  # chance has no part in it
        assert not torch.equal(fit(x, beta, 20, 1).vectors, concepts.vectors)


@each_fit
def test_concepts_of_every_extractor_are_kept_as_they_are(fit, tmp_path):
    """Their class, every field, and codes to the last bit."""
    x, beta = pfvs()
    made = fit(x, beta, 20, 0, block="layer4.2")
    made = tune(made, x, nonzeros=3) if made.needs_lam else made
    save(made, tmp_path / "concepts.safetensors")
    read = load(tmp_path / "concepts.safetensors")
    assert type(read) is type(made) and read.fingerprint == made.fingerprint
    for field in fields(made):
        kept, own = (getattr(concepts, field.name) for concepts in (read, made))
        if isinstance(own, torch.Tensor):
            assert torch.equal(kept, own) and kept.dtype == own.dtype
        else:
            assert kept == own and type(kept) is type(own)
    codes = made.encode(x[:50])
    assert codes.any() and torch.equal(read.encode(x[:50]), codes)
    assert torch.equal(read.decode(codes), made.decode(codes))


@each_fit
def test_bad_input(fit):
    x, beta = pfvs(n=10)
    with pytest.raises(ValueError, match="10"):
        fit(x, beta, 11, 0)
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        fit(x, beta, 2, 0)


def test_the_papers_own_comes_first():
    assert next(iter(EXTRACTORS)) == "bisecting" and EXTRACTORS["bisecting"].fit is extract


def test_random_concepts_are_pfvs():
    x, beta = pfvs()
    k = len(x) // 2  # of so many drawn with repetition some would be drawn twice
    concepts = random_pfvs(x, beta, k, 0)
    vectors = concepts.vectors
    # In double precision: cdist in single loses three digits to cancellation.
    distance = torch.cdist((vectors + beta).double(), x.double())
    assert distance.amin(1).max() < 1e-5
    assert len(distance.argmin(1).unique()) == k
    assert concepts.labels[distance.argmin(1)].tolist() == [*range(k)], "each is nearest to itself"


def test_kmeans_is_scikit_learns_from_one_start():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(x, dim=1).numpy()
    for seed in (4, 5, 9):  # of two starts the other would win
        fit = KMeans(15, n_init=1, random_state=seed).fit(unit)
        assert kmeans(x, torch.zeros(5), 15, seed).labels.tolist() == fit.labels_.tolist()


def test_kmeans_sorts_by_direction_whatever_the_length():
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(4).repeat(25, 1) + 0.01 * torch.randn(100, 4, generator=generator)
    lengths = torch.logspace(0, 3, 100)[torch.randperm(100, generator=generator)]
    beta = torch.linspace(-1, 1, 4)
    for seed in range(3):
        concepts = kmeans(lengths[:, None] * directions + beta, beta, 2, seed)
        # Two clusters of four directions; the vectors' squares would cut off the longest ones.
        of_direction = concepts.labels.reshape(25, 4)
        assert (of_direction == of_direction[0]).all() and len(of_direction[0].unique()) == 2
    x = lengths[:, None] * directions + beta
    raw = kmeans(x, beta, 2, average="raw")
    for label in range(2):
        torch.testing.assert_close(raw.vectors[label], (x - beta)[raw.labels == label].mean(dim=0))


def error(concepts, x, nonzeros=3):
    tuned = tune(concepts, x, nonzeros=nonzeros)
    return float(relative_l2(x, tuned.decode(tuned.encode(x))).mean())


def test_dictionary_learning_lowers_the_error_at_equal_non_zeros():
    """Of the clusters it starts at, and of PFVs drawn blindly; of others' PFVs too."""
    every, beta = pfvs(n=1200)
    for x in (every[:800], every[800:]):
        rivals = [fit(every[:800], beta, 16, 0) for fit in (extract, random_pfvs)]
        learnt = dictionary_learning(every[:800], beta, 16, 0)
        # An eighth below: it is not the λ, found within 2 % of the non-zeros, that decides.
        assert error(learnt, x) < 0.875 * min(error(rival, x) for rival in rivals)


@pytest.mark.parametrize("seed", range(3))
def test_dictionary_learning_finds_what_was_planted(seed):
    """Of sixteen directions, of which each PFV is a sum of two, all but a few that it confuses."""
    x, beta = pfvs(n=2000)
    planted = F.normalize(torch.randn(16, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    learnt, clusters = (
        (planted @ F.normalize(fit(x, beta, 16, seed).vectors, dim=1).T).abs().amax(1)
        for fit in (partial(dictionary_learning, passes=20), extract)
    )
    # 18 degrees: of sixteen random directions the next is 50 away.
    assert (learnt > 0.95).sum() >= 13 and (clusters > 0.95).sum() <= 6


def test_dictionary_learning_starts_at_the_clusters_of_its_seed(monkeypatch):
    (x, beta), seen = pfvs(), []
    start = dictionary_learning(x, beta, 16, 3, passes=0).vectors
    torch.testing.assert_close(start, F.normalize(extract(x, beta, 16, 3).vectors, dim=1))

    def tuned(concepts, x, *, seed):
        seen.append((concepts.block, seed))
        return tune(concepts, x, seed=seed)

    monkeypatch.setattr("gig_helpers.extractors.dictionary.tune", tuned)
    dictionary_learning(x, beta, 16, 3, passes=2, block="layer3.5")
    assert seen == [("layer3.5", 3)] * 2


def test_one_pass_over_the_atoms_by_hand():
    """Each in turn fits what the others leave; one that would be longer than 1 is shortened."""
    for x, expected in (([0.5, 0.0], [0.5, 0.0]), ([3.0, 0.0], [1.0, 0.0])):
        vectors = torch.tensor([[1.0, 0.0]])
        _update(vectors, torch.ones(1, 1).to_sparse(), torch.tensor([x]))
        assert vectors.tolist() == [expected]
    vectors = torch.eye(2)
    _update(vectors, torch.ones(1, 2).to_sparse(), torch.tensor([[0.5, 0.5]]))
    assert vectors.tolist() == [[0.5, -0.5], [0.0, 1.0]], "nothing is left for the second"


def test_matching_pursuit_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    lengths = torch.tensor([[2.0], [1.0]])
    pursuit = overcomplete.MatchingPursuit(
        lengths * vectors, torch.ones(2), torch.zeros(1), steps=3
    )
    codes = pursuit.encode(torch.tensor([[2.0, 2.0], [5.0, 1.0]]))
    # (1, 1) is 1.4 of the second and 0.16 of the first's direction; a third step finds nothing.
    torch.testing.assert_close(codes, torch.tensor([[0.08, 1.4], [1.28, 2.4]]))


def test_the_largest_codes_are_kept_by_hand():
    parts = {"encoder": torch.eye(3), "encoder_bias": torch.zeros(3), "kept": 2}
    sae = overcomplete.TopKAutoencoder(torch.eye(3), torch.zeros(3), torch.zeros(1), **parts)
    codes = sae.encode(torch.tensor([[3.0, -4.0, 1.0], [1.0, 3.0, 2.0]]))
    assert codes.tolist() == [[3, 0, 1], [0, 3, 2]]


def test_codes_of_nmf_are_of_what_a_relu_leaves():
    nmf = overcomplete.NonNegative(torch.eye(2), torch.zeros(2), torch.zeros(1))
    codes = nmf.encode(torch.tensor([3.0, -4.0]))
    torch.testing.assert_close(codes, torch.tensor([3.0, 0.0]), atol=1e-3, rtol=0)


def test_learnt_atoms_are_of_unit_length_at_most_whatever_the_unit():
    x, beta = pfvs()
    small, large = (dictionary_learning(c * x, c * beta, 16, passes=2).vectors for c in (1, 100))
    assert small.norm(dim=1).max() <= 1 + 1e-6
    torch.testing.assert_close(large, small, atol=1e-2, rtol=0)


def test_sae_rebuilds_x_where_it_converges():
    x, beta = pfvs(n=300)
    weak = sparse_autoencoder(x, beta, 48, 0, sparsity=0.3, epochs=1)
    fair = sparse_autoencoder(x, beta, 48, 0, sparsity=0.3)
    errors = []
    for sae in (weak, fair):
        codes = sae.encode(x)
        assert codes.shape == (300, 48) and (codes >= 0).all()
        errors.append(relative_l2(x, sae.decode(codes)).mean())
    assert len(weak.losses) == 1
    assert fair.losses[-1] < weak.losses[-1]
    # Converged, and at so weak a penalty the data's few directions are learnt.
    assert errors[1] < 0.2 < errors[0]
    short = EXTRACTORS["sae_short"].fit(x, beta, 48, 0)
    assert len(short.losses) == 5 < len(fair.losses)


def test_an_autoencoder_is_the_same_in_any_unit():
    x, beta = pfvs(n=50)
    small, large = (sparse_autoencoder(c * x, c * beta, 8, epochs=2) for c in (1, 128))
    for name, c in (("vectors", 128), ("beta", 128), ("encoder", 1 / 128), ("encoder_bias", 1)):
        assert torch.equal(getattr(large, name), c * getattr(small, name)), name


def test_an_autoencoders_dictionary_is_written_with_by_the_lasso():
    """Its own codes are the encoder's whatever λ; its directions alone know no encoder."""
    x, beta = pfvs()
    sae = sparse_autoencoder(x, beta, 20, 0, epochs=2)
    assert torch.equal(replace(sae, lam=2.5).encode(x), sae.encode(x))
    dictionary = sae.dictionary()
    assert torch.equal(dictionary.vectors, sae.vectors) and torch.equal(dictionary.beta, sae.beta)
    with pytest.raises(ValueError, match="no λ yet"):
        dictionary.encode(x)
    codes = tune(dictionary, x, nonzeros=3).encode(x)
    assert (codes != 0).sum(1).double().mean() == pytest.approx(3, rel=0.05) and (codes < 0).any()


def test_sae_loss_is_equation_11():
    x, beta = pfvs(n=10)
    # A learning rate this small leaves the start in place, so the loss is that of the returned
    # weights, in the scaled unit, for the one PFV of ten that was held out.
    sae = sparse_autoencoder(x, beta, 8, 0, sparsity=5.0, epochs=1, learning_rate=1e-12)
    scale = ((x - x.mean(0)).square().sum(1).mean() / 12).sqrt()
    codes = sae.encode(x)
    error = (x - codes @ sae.vectors - sae.beta) / scale
    penalty = (codes * sae.vectors.norm(dim=1) / scale).sum(1)
    expected = (error.square().sum(1) + 5.0 * penalty).tolist()
    assert sum(sae.losses[0] == pytest.approx(each, rel=1e-4) for each in expected) == 1
    torch.testing.assert_close(sae.vectors.norm(dim=1) / scale, torch.full((8,), 0.1))


def test_sae_is_trained_as_is_said(monkeypatch):
    """The penalty grows over the first twentieth of the steps; gradients are clipped to 1."""
    seen, norms, real = [], [], nn.utils.clip_grad_norm_

    def off(target, share):
        if torch.is_grad_enabled():
            seen.append(share)
        return 1e3 * (target - offset).square().mean()

    def clipped(parameters, most):
        real(parameters, most)
        norms.append(float(offset.grad.norm()))

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clipped)
    offset, x = torch.full((1,), 9.0, requires_grad=True), torch.zeros(2840, 1)  # ten batches
    losses = train([offset], off, x, torch.Generator(), epochs=20, learning_rate=1e-9)
    assert len(losses) == 20 and seen[:11] == pytest.approx([*(n / 10 for n in range(1, 11)), 1])
    assert norms == pytest.approx([1.0] * 200) and seen[10:] == [1.0] * 190
    shares = []

    def watched(parameters, loss, x, generator, **options):
        shares.extend(loss(x, share).item() for share in (0.0, 0.5, 1.0))
        return train(parameters, loss, x, generator, **options)

    monkeypatch.setattr(sae_module, "train", watched)
    sparse_autoencoder(*pfvs(n=20), 8, epochs=1)
    assert shares[0] < shares[1] == pytest.approx((shares[0] + shares[2]) / 2)


def test_the_loss_that_is_kept_is_of_pfvs_held_out():
    offset = torch.zeros(1, requires_grad=True)
    seen = {True: [], False: []}

    def off(target, share):
        seen[torch.is_grad_enabled()].append(target)
        return (target - offset).square().mean()

    x = torch.arange(50.0)[:, None]
    train([offset], off, x, torch.Generator(), epochs=2)
    trained, held = (torch.cat(seen[mode]).unique() for mode in (True, False))
    assert len(held) == 5 and len(trained) == 45 and not torch.isin(held, trained).any()


def test_learning_is_flat_where_ten_epochs_bring_less_than_a_hundredth():
    falls = [1.0 - 0.02 * n for n in range(5)]
    assert not sae_module._flat([*falls, *[0.91] * PATIENCE]) and not sae_module._flat(falls)
    assert sae_module._flat([*falls, *[0.915] * PATIENCE])


@pytest.mark.parametrize("offset", [5, 10, 24])
def test_sae_does_not_mind_where_the_mean_lies(offset):
    """In 3 of 32 dimensions, far off β; b_d's start there would leave units dead."""
    x, _ = pfvs(n=1000, channels=32, directions=64)
    moved = x.clone()
    moved[:, :3] += offset * x.std()
    here, there = (sparse_autoencoder(part, torch.zeros(32), 128) for part in (x, moved))
    assert unused(there, moved) == unused(here, x)
    error, expected = (
        float((part - sae.decode(sae.encode(part))).square().sum() / (x - x.mean(0)).square().sum())
        for sae, part in ((there, moved), (here, x))
    )
    # Rounding grows over epochs; from β the error was the whole variance at the largest offset.
    assert error == pytest.approx(expected, rel=0.02)


def test_sae_is_trained_until_pfvs_held_out_say_enough():
    x, beta = pfvs()
    losses = sparse_autoencoder(x, beta, 20).losses
    longer = sparse_autoencoder(x, beta, 20, epochs=500).losses
    assert len(losses) < 500 == len(longer)
    # Flat: of what it could still gain in the rest of 500 epochs, little.
    assert min(losses) < 1.05 * min(longer)
    before, last = losses[:-PATIENCE], losses[-PATIENCE:]
    assert min(last) > 0.99 * min(before[25:])  # after the warm-up of 25


def test_unused_units_are_those_without_a_code():
    x, beta = pfvs()
    sae = sparse_autoencoder(x, beta, 20, epochs=2)
    bias = torch.full((20,), -1e6).index_fill(0, torch.tensor([3, 7, 8]), 1e6)
    assert unused(replace(sae, encoder_bias=bias), x) == 17
    # 1,024 at a time; what one batch alone uses is used.
    few = torch.zeros(20).index_fill(0, torch.tensor([3, 7, 8]), 1.0)
    encoder = few[:, None] * torch.eye(20, x.shape[1])[0]
    sparse = replace(sae, encoder=encoder, encoder_bias=torch.full((20,), -1.0))
    many = torch.zeros(1030, x.shape[1])
    many[-1, 0] = 9.0
    assert unused(sparse, beta + many) == 17


def test_sae_leaves_the_global_seed_alone():
    x, beta = pfvs()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sparse_autoencoder(x, beta, 8, 0, epochs=1)
    assert torch.equal(torch.rand(3), expected)


@missing
@pytest.mark.parametrize("name", overcomplete.NEED_PACKAGE)
def test_autoencoders_of_the_package_are_what_it_trained(name, monkeypatch):
    """Codes and PFVs as its own model gives them, in the PFVs' unit."""
    x, beta = pfvs()
    made = {}
    kind = {"top_k": "TopKSAE", "archetypal": "RATopKSAE", "matching_pursuit": "MpSAE"}[name]
    overcomplete.autoencoder(x[:20], beta, 4)  # imports the package
    package = sys.modules["overcomplete.sae"]
    plain = getattr(package, kind)
    monkeypatch.setattr(
        package, kind, lambda *a, **b: made.setdefault("model", plain(*a, **b))
    )  # fmt: skip
    concepts = EXTRACTORS[name].fit(x, beta, 20)
    scale = (x - x.mean(0)).square().mean().sqrt()
    _, codes, rebuilt = made["model"]((x - x.mean(0)) / scale)
    torch.testing.assert_close(concepts.encode(x), codes.detach(), atol=1e-3, rtol=1e-3)
    expected = rebuilt.detach() * scale + x.mean(0)
    torch.testing.assert_close(concepts.decode(concepts.encode(x)), expected, atol=1e-2, rtol=1e-3)
    assert 0 < (codes != 0).sum(1).max() <= 2  # C / 32 is less
    assert relative_l2(x, expected).mean() < 0.8 and len(concepts.losses) < 500


def test_without_the_package_one_is_told_what_to_install(monkeypatch):
    x, beta = pfvs()
    monkeypatch.setitem(sys.modules, "overcomplete", None)
    with pytest.raises(ImportError, match=r"gig-helpers\[rivals\]"):
        overcomplete.autoencoder(x, beta, 20)


def test_nmf_rebuilds_activations_by_codes_that_are_not_negative():
    x, beta = pfvs()
    concepts = overcomplete.nmf(x, beta, 8)
    codes = concepts.encode(x)
    assert (codes >= 0).all() and (concepts.vectors >= 0).all() and not concepts.beta.any()
    for target, code in zip(F.relu(x[:20]), codes, strict=False):
        best = nnls(concepts.vectors.T.double().numpy(), target.double().numpy())[1]
        assert float((target - code @ concepts.vectors).norm()) == pytest.approx(best, rel=0.02)


def test_principal_components_leave_what_an_svd_leaves():
    x, beta = pfvs()
    concepts = overcomplete.pca(x, beta, 4)
    torch.testing.assert_close(concepts.beta, x.mean(0))
    centred = x - x.mean(0)
    rest = centred - centred @ concepts.vectors.T @ concepts.vectors
    assert rest.square().sum() == pytest.approx(
        float(torch.linalg.svdvals(centred)[4:].square().sum()), rel=1e-4
    )


def test_independent_components_are_the_planted_ones():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator)
    x = torch.rand(2000, 4, generator=generator) @ mixing
    likest = F.normalize(mixing, dim=1) @ overcomplete.ica(x, x.mean(0), 4).vectors.T
    assert likest.abs().amax(1).min() > 0.98

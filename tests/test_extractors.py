"""extractors: one interface, and each does what its name says."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from gig_helpers import reconstruct
from gig_helpers.codes import encode, relative_l2
from gig_helpers.concepts import extract, tune
from gig_helpers.extractors import (
    EXTRACTORS,
    dictionary_learning,
    kmeans,
    random_pfvs,
    sparse_autoencoder,
)


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


@pytest.mark.parametrize("method", EXTRACTORS.values(), ids=EXTRACTORS)
def test_same_interface(method):
    x, beta = pfvs()
    concepts = method(x, beta, 20, 0)
    assert concepts.vectors.shape == (20, 12) and concepts.vectors.dtype == x.dtype
    assert concepts.beta.shape == (12,) and concepts.labels.shape == (300,)
    assert 0 <= concepts.labels.min() and concepts.labels.max() < 20
    assert torch.isfinite(concepts.vectors).all()
    assert concepts.lam is None
    torch.testing.assert_close(method(x, beta, 20, 0).vectors, concepts.vectors)
    assert method(x, beta, 20, block="layer4.2").block == "layer4.2"
    assert not torch.equal(method(x, beta, 20, 1).vectors, concepts.vectors)


@pytest.mark.parametrize("method", EXTRACTORS.values(), ids=EXTRACTORS)
def test_bad_input(method):
    x, beta = pfvs(n=10)
    with pytest.raises(ValueError, match="10"):
        method(x, beta, 11, 0)
    x[3, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        method(x, beta, 2, 0)


def test_the_papers_own_comes_first():
    assert next(iter(EXTRACTORS)) == "bisecting" and EXTRACTORS["bisecting"] is extract


def test_random_concepts_are_pfvs():
    x, beta = pfvs()
    vectors = random_pfvs(x, beta, 20, 0).vectors
    # In double precision: cdist in single loses three digits to cancellation.
    distance = torch.cdist((vectors + beta).double(), x.double())
    assert distance.amin(1).max() < 1e-5
    assert len(distance.argmin(1).unique()) == 20


def test_kmeans_averages_its_members():
    x, beta = pfvs()
    concepts = kmeans(x, beta, 20, 0)
    own = x[concepts.members(4)] - beta
    torch.testing.assert_close(concepts.vectors[4], F.normalize(own, dim=1).mean(0))


def test_dictionary_learning_beats_random():
    x, beta = pfvs()
    held_out, _ = pfvs(seed=0, n=400)
    errors = []
    for method in (dictionary_learning, random_pfvs):
        concepts = method(x, beta, 16, 0)
        unit = replace(concepts, vectors=F.normalize(concepts.vectors, dim=1))
        unit = tune(unit, held_out, nonzeros=3)
        found = reconstruct(encode(held_out, unit), unit)
        errors.append(relative_l2(held_out, found).mean())
    assert errors[0] < errors[1]


def test_sae_codes_are_the_encoders_and_rebuild_x():
    x, beta = pfvs(n=300)
    weak = sparse_autoencoder(x, beta, 48, 0, sparsity=0.3, epochs=1)
    fair = sparse_autoencoder(x, beta, 48, 0, sparsity=0.3)
    errors = []
    for sae in (weak, fair):
        codes = sae.codes(x)
        assert codes.shape == (300, 48) and (codes >= 0).all()
        torch.testing.assert_close(codes, F.relu(F.linear(x, sae.encoder, sae.encoder_bias)))
        errors.append(relative_l2(x, reconstruct(codes, sae)).mean())
    assert len(weak.losses) == 1
    assert fair.losses[-1] < weak.losses[-1]
    # Converged, and at so weak a penalty the data's few directions are learnt.
    assert errors[1] < 0.2 < errors[0]


def test_sae_loss_is_equation_11():
    x, beta = pfvs()
    # A learning rate this small leaves the start in place, and one batch makes one step, at the
    # end of the warm-up: so the loss is that of the returned weights, in the scaled unit.
    sae = sparse_autoencoder(
        x, beta, 20, 0, sparsity=5.0, epochs=1, learning_rate=1e-12, batch_size=300
    )
    scale = ((x - beta).square().sum(1).mean() / 12).sqrt()
    codes = sae.codes(x)
    error = (x - codes @ sae.vectors - sae.beta) / scale
    penalty = (codes * sae.vectors.norm(dim=1) / scale).sum(1)
    expected = error.square().sum(1).mean() + 5.0 * penalty.mean()
    assert sae.losses[0] == pytest.approx(float(expected), rel=1e-4)


def test_sae_leaves_the_global_seed_alone():
    x, beta = pfvs()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sparse_autoencoder(x, beta, 8, 0, epochs=1)
    assert torch.equal(torch.rand(3), expected)

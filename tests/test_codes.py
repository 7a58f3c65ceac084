"""codes.py: codes with the concepts' own β and λ, back again, and kept on disk as they are."""

from dataclasses import replace

import pytest
import torch
from conftest import random_network

from gig_helpers import Concepts, picture_codes, reconstruct
from gig_helpers.codes import encode, l0_ratio, load_codes, relative_l2
from gig_helpers.extractors import SparseAutoencoder
from gig_helpers.lasso import duality_gap, lasso_codes

BLOCKS = ("layer2.0", "layer3.0")


@pytest.fixture
def parts():
    """A small network, two pictures, concepts of two blocks."""
    network = random_network("v1.5", width_per_group=8)
    concepts = {}
    for block, lam in zip(BLOCKS, (20.0, 30.0), strict=True):
        vectors = torch.randn(9, network.channels(block))
        # A β of their own, as a sparse autoencoder's concepts have.
        beta = network.bn_shift(block) + torch.rand(network.channels(block))
        concepts[block] = Concepts(vectors, beta, torch.arange(9), block, lam)
    return network, torch.randn(2, 3, 64, 64), concepts


def test_measures_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    concepts = Concepts(vectors, torch.tensor([0.0, 1.0]), torch.arange(3))
    codes = torch.tensor([[3.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    x_hat = reconstruct(codes, concepts)
    assert x_hat.tolist() == [[3.0, 5.0], [0.0, 1.0]]
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    torch.testing.assert_close(relative_l2(x, x_hat), torch.tensor([0.2, 0.5]))
    torch.testing.assert_close(l0_ratio(codes), torch.tensor([1 / 3, 1.0]))
    with pytest.raises(ValueError, match="shapes differ"):
        relative_l2(x, x_hat[0])


def test_encode_is_the_lasso_with_the_concepts_own_beta_and_lambda():
    torch.manual_seed(0)
    concepts = Concepts(torch.randn(20, 6), torch.randn(6), torch.arange(20), "layer4.2", 2.5)
    x = 3 * torch.randn(4, 5, 6)
    codes = encode(x, concepts)
    wanted = lasso_codes(x, concepts.vectors, 2.5, beta=concepts.beta)
    assert codes.shape == (4, 5, 20) and torch.equal(codes, wanted) and codes.any()
    rough = encode(x, concepts, tol=0.3)
    gaps = [duality_gap(x, concepts.vectors, u, 2.5, beta=concepts.beta) for u in (codes, rough)]
    assert gaps[0].max() < 1e-4 < gaps[1].max() <= 0.3


def test_concepts_without_lambda_say_so(parts):
    network, images, concepts = parts
    bare = replace(concepts[BLOCKS[0]], lam=None)
    message = "the concepts of 'layer2.0' have no λ yet: see concepts.tune"
    for call in (
        lambda: encode(torch.ones(network.channels(BLOCKS[0])), bare),
        lambda: picture_codes(network, images, {BLOCKS[0]: bare}),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_autoencoder_without_lambda_makes_its_own_codes(parts):
    network, images, concepts = parts
    block = BLOCKS[0]
    here = concepts[block]
    encoder, bias = torch.randn_like(here.vectors), torch.randn(len(here))
    own = {"encoder": encoder, "encoder_bias": bias}
    sae = SparseAutoencoder(here.vectors, here.beta, here.labels, block, **own)
    x = network.positions(network.preactivations(images, [block])[block], block)
    found = picture_codes(network, images, {block: sae})[block]
    assert torch.allclose(found, (x @ encoder.T + bias).clamp(min=0)) and found.any()
    assert torch.equal(encode(x, replace(sae, lam=2.5)), encode(x, replace(here, lam=2.5)))


def test_codes_of_pictures_are_those_of_their_positions(parts):
    network, images, concepts = parts
    found = picture_codes(network, images, dict(reversed(concepts.items())))
    assert list(found) == list(BLOCKS), "in the network's order"
    for block, x in network.preactivations(images, BLOCKS).items():
        side = x.shape[2]
        assert found[block].shape == (2, side * side, 9) and found[block].any()
        one = encode(x[1, :, 2, 3], concepts[block], tol=1e-7)
        # A gap of 1e-5 leaves codes to its root.
        torch.testing.assert_close(found[block][1, 2 * side + 3], one, rtol=1e-2, atol=1e-2)


def test_codes_are_kept_as_they_are(parts, artifacts_folder, monkeypatch):
    network, images, concepts = parts
    here = concepts["layer3.0"]
    first = load_codes(network, images, here)
    alone = [picture_codes(network, image[None], {here.block: here}) for image in images]
    assert torch.equal(first, torch.cat([codes[here.block] for codes in alone]))
    assert first.any() and len(list(artifacts_folder.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(network, "preactivations", None)
        assert torch.equal(load_codes(network, images.flip(0), here), first.flip(0))
    # Another λ makes other codes.
    assert not torch.equal(load_codes(network, images, replace(here, lam=40.0)), first)
    assert len(list(artifacts_folder.iterdir())) == 4

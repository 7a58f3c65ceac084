"""concepts.py: averages of clusters, their λ, and what they are found again by."""

from dataclasses import replace

import pytest
import torch
from conftest import random_network
from torch.nn import functional as F

from gig_helpers import Concepts, load_concepts, load_pictures, sample
from gig_helpers.clustering import BisectingSphericalKMeans
from gig_helpers.codes import encode
from gig_helpers.concepts import concept_vectors, extract, nearest_concept, tune, wanted_nonzeros
from gig_helpers.data import profiles
from gig_helpers.extractors import SparseAutoencoder


@pytest.fixture(scope="module")
def pfvs():
    torch.manual_seed(0)
    return torch.randn(60, 5) * 3 + 1, torch.full((5,), 1.0)


def test_extract_gives_averages_of_centred_members(pfvs):
    x, beta = pfvs
    concepts = extract(x, beta, 7, average="raw", block="layer1.0")
    assert len(concepts) == 7 and concepts.block == "layer1.0"
    for q in range(7):
        own = x[concepts.members(q)] - beta
        torch.testing.assert_close(concepts.vectors[q], own.mean(0))
    shifted = extract(x + 5, beta + 5, 7, average="raw")
    torch.testing.assert_close(shifted.vectors, concepts.vectors, rtol=1e-4, atol=1e-4)


def test_averages_of_unit_vectors_are_shorter_where_looser(pfvs):
    x, beta = pfvs
    labels = torch.from_numpy(BisectingSphericalKMeans(7, random_state=0).fit(x - beta).labels_)
    unit = concept_vectors(x, labels, beta)
    torch.testing.assert_close(unit, extract(x, beta, 7, 0).vectors)
    own = F.normalize(x - beta, dim=1)[labels == 3]
    torch.testing.assert_close(unit[3], own.mean(0))
    # ‖mean of unit vectors‖ = mean cosine to the centroid, so at most 1.
    torch.testing.assert_close(unit[3].norm(), (own @ F.normalize(unit[3], dim=0)).mean())


def test_concept_vectors_bad_input(pfvs):
    x, beta = pfvs
    with pytest.raises(ValueError, match='"unit" or "raw"'):
        concept_vectors(x, torch.zeros(60, dtype=torch.long), beta, "mean")
    with pytest.raises(ValueError, match="no PFV has the label 1"):
        concept_vectors(x, torch.arange(60) % 2 * 2, beta)


@pytest.mark.parametrize(
    "vectors, beta, message",
    [
        (torch.ones(3), torch.ones(3), r"expected concepts \(k, C\)"),
        (torch.ones(3, 2), torch.ones(3), r"expected concepts \(k, C\)"),
        (torch.full((3, 2), torch.nan), torch.ones(2), "NaN or infinite"),
        (torch.ones(3, 2), torch.full((2,), torch.inf), "NaN or infinite"),
    ],
)
def test_concepts_that_do_not_fit_are_refused(vectors, beta, message):
    with pytest.raises(ValueError, match=message):
        Concepts(vectors, beta, torch.arange(3))


def test_nearest_by_hand():
    concepts = Concepts(torch.eye(2), torch.ones(2), torch.tensor([0, 1, 0]))
    x = torch.tensor([[3.0, 1.5], [1.0, 9.0], [2.0, 1.0]])  # centred: (2, .5), (0, 8), (1, 0)
    assert concepts.nearest(x, 2).tolist() == [[2, 0], [1, 0]]
    shifted = replace(concepts, beta=torch.tensor([4.0, 0.0]))
    x = torch.tensor([[5.0, 4.0], [9.0, 4.0]])  # centred: (1, 4), (5, 4)
    assert nearest_concept(x, shifted).tolist() == [1, 0]
    with pytest.raises(ValueError, match="between 1 and the 2"):
        concepts.nearest(x, 3)
    with pytest.raises(IndexError, match="no concept 2"):
        concepts.members(2)


def test_a_pfv_belongs_to_the_concept_of_its_direction_whatever_that_ones_length():
    vectors = torch.tensor([[10.0, 0.0], [0.0, 0.1]])
    concepts = Concepts(vectors, torch.ones(2), torch.arange(2))
    # Its inner product is larger with the first, its cosine with the second.
    assert nearest_concept(torch.tensor([[1.5, 3.0]]), concepts).tolist() == [1]


def test_class_entropy_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    concepts = Concepts(torch.eye(4), torch.zeros(4), labels)
    found = concepts.class_entropy(torch.tensor([5, 5, 7, 7, 2, 2, 9]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, torch.nan, 0.0]), equal_nan=True)
    with pytest.raises(ValueError, match="one class for each of 7"):
        concepts.class_entropy(torch.tensor([1]))


def test_wanted_nonzeros_are_the_papers_or_a_quarter():
    assert wanted_nonzeros("layer4.2", 16_384) == 105
    assert wanted_nonzeros("layer4.2", 420) == 105 and wanted_nonzeros("layer4.2", 416) == 104
    assert wanted_nonzeros("layer3.10", 30) == 7.5


@pytest.mark.parametrize("wanted", [2, 5])
def test_tune_gives_the_count(wanted):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 12, generator=generator) + 3
    concepts = extract(x, torch.full((12,), 3.0), 30)
    tuned = tune(concepts, x, nonzeros=wanted)
    count = (encode(x, tuned) != 0).sum(1).double().mean()
    # All of these PFVs are those that λ was chosen on: the 2 % of lambda_for, and codes that its
    # looser tolerance leaves just above zero.
    assert count == pytest.approx(wanted, rel=0.05)
    assert torch.equal(tuned.vectors, concepts.vectors) and concepts.lam is None


def test_tune_asks_for_the_papers_count_and_draws_with_its_seed():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator)
    concepts = extract(x, torch.zeros(12), 20, block="layer1.1")
    assert tune(concepts, x).lam == tune(concepts, x, nonzeros=5, seed=0).lam  # min(11, 20 / 4)
    assert tune(concepts, x).lam != tune(concepts, x, seed=1).lam, "other PFVs"
    elsewhere = replace(concepts, block="blocks.3")
    assert tune(elsewhere, x).lam == tune(concepts, x, nonzeros=2).lam, "12 / 32, 2 at least"


def test_the_fingerprint_counts_what_codes_depend_on():
    concepts = Concepts(torch.eye(3), torch.zeros(3), torch.arange(3), "layer4.2", 1.0)
    same = replace(concepts, labels=torch.zeros(3))
    assert concepts.fingerprint == same.fingerprint
    others = [
        replace(concepts, vectors=2 * torch.eye(3)),
        replace(concepts, beta=torch.ones(3)),
        replace(concepts, block="layer4.1"),
        replace(concepts, lam=2.0),
        replace(concepts, lam=None),
    ]
    assert len({concepts.fingerprint, *(other.fingerprint for other in others)}) == 6
    encoder = {"encoder": torch.eye(3), "encoder_bias": torch.zeros(3)}
    sae = SparseAutoencoder(concepts.vectors, concepts.beta, concepts.labels, "layer4.2", **encoder)
    other = replace(sae, encoder=2 * torch.eye(3))
    assert sae.fingerprint != other.fingerprint, "its own codes are the encoder's"


def test_concepts_of_a_dataset_are_kept(photographs, artifacts_folder, monkeypatch):
    blocks = ("layer1.0", "layer3.0")
    profile = replace(
        profiles.get("quick"), blocks=blocks, per_image=6, pfvs_per_concept=4, batch_size=4
    )
    network = random_network("basic")
    pictures = load_pictures(str(photographs)).subset(range(8))
    dataset = sample(network, pictures, profile)
    found = load_concepts(network, dataset, profile)
    assert list(found) == list(blocks)
    for block, concepts in found.items():
        x, beta = dataset.vectors(block), network.bn_shift(block)
        k = profile.n_concepts(network.channels(block), 48)
        expected = extract(x, beta, k, profile.seed, block=block)
        expected = tune(expected, x, seed=profile.seed)
        assert len(concepts) == k == 12 and concepts.block == block
        assert torch.equal(concepts.labels, expected.labels)
        torch.testing.assert_close(concepts.vectors, expected.vectors)
        torch.testing.assert_close(concepts.beta, beta)
        assert concepts.lam == pytest.approx(expected.lam)
    monkeypatch.setattr("gig_helpers.concepts.extract", None)  # read, not made again
    again = load_concepts(network, dataset, profile, blocks[1:])
    assert list(again) == [blocks[1]]
    assert again[blocks[1]].fingerprint == found[blocks[1]].fingerprint
    with pytest.raises(KeyError, match="no PFVs of 'layer2.0'"):
        load_concepts(network, dataset, profile, ["layer2.0"])

"""codes.py: pictures written as concepts, what is taken out of them, and codes kept on disk."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import random_decomposition, random_network
from torch.nn import functional as F

from gig_helpers import (
    Concepts,
    Decomposition,
    SparseAutoencoder,
    attribute,
    decompose,
    deletion_insertion,
)
from gig_helpers.codes import l0_ratio, relative_l2
from gig_helpers.concepts import load, save

BLOCKS = ("layer2.0", "layer3.0")


@pytest.fixture
def parts(artifacts_folder):
    """A small network, two pictures, concepts of two blocks; nothing on disk."""
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
    x_hat = concepts.decode(codes)
    assert x_hat.tolist() == [[3.0, 5.0], [0.0, 1.0]]
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    torch.testing.assert_close(relative_l2(x, x_hat), torch.tensor([0.2, 0.5]))
    torch.testing.assert_close(l0_ratio(codes), torch.tensor([1 / 3, 1.0]))
    with pytest.raises(ValueError, match="shapes differ"):
        relative_l2(x, x_hat[0])


# ------------------------------------------------------------------------------------ decomposing


def test_codes_of_pictures_are_those_of_their_positions(parts):
    network, images, concepts = parts
    d = decompose(network, images, dict(reversed(concepts.items())))
    assert d.blocks == BLOCKS == tuple(d.codes), "in the network's order"
    for block, x in network.preactivations(images, BLOCKS).items():
        side = x.shape[2]
        assert d.codes[block].shape == (2, side * side, 9) and d.codes[block].any()
        alone = concepts[block].encode(x[1, :, 2, 3], tol=1e-7)
        # A gap of 1e-5 leaves codes to its root.
        torch.testing.assert_close(d.codes[block][1, 2 * side + 3], alone, rtol=1e-2, atol=1e-2)
        # X = X̃ + ε, at every position.
        rows = x.flatten(2).mT
        torch.testing.assert_close(d.reconstruction(block) + d.residual(block), rows)
        by_hand = concepts[block].beta + d.codes[block] @ concepts[block].vectors
        torch.testing.assert_close(d.reconstruction(block), by_hand)


def test_codes_are_kept_as_they_are(parts, artifacts_folder, monkeypatch):
    network, images, concepts = parts
    passes, forward = [], network.preactivations

    def counted(*given):
        passes.append(given)
        return forward(*given)

    monkeypatch.setattr(network, "preactivations", counted)
    d = decompose(network, images, concepts)
    assert len(passes) == 2, "one pass for all blocks of a picture"
    assert len(list(artifacts_folder.iterdir())) == 4, "a file a picture and block"
    turned = decompose(network, images.flip(0), concepts)
    assert len(passes) == 2
    assert all(
        torch.equal(turned.codes[b], d.codes[b].flip(0)) and d.codes[b].any() for b in BLOCKS
    )
    # Another λ makes other codes.
    block = BLOCKS[1]
    other = decompose(network, images, {block: replace(concepts[block], lam=40.0)})
    assert not torch.equal(other.codes[block], d.codes[block])
    assert len(list(artifacts_folder.iterdir())) == 6


def test_what_codes_are_found_again_by(parts, artifacts_folder):
    """Network, picture and concepts, each alone; a name that concepts do not have is given them."""
    network, images, concepts = parts
    block = BLOCKS[0]
    here = concepts[block]
    run = partial(decompose, network, images[:1])

    def made():
        return len(list(artifacts_folder.iterdir()))

    run({block: here})
    run({block: replace(here, block="", vectors=here.vectors.clone())})
    assert (some := made()) == 1, "equal concepts"
    for n, call in enumerate(
        (
            lambda: run({block: replace(here, vectors=here.vectors + 1e-6)}),
            lambda: run({block: replace(here, beta=here.beta + 1e-6)}),
            lambda: run({block: replace(here, lam=20.5)}),
            lambda: decompose(network, images[1:], {block: here}),
            lambda: decompose(random_network("v1.5", width_per_group=8, seed=1), images[:1],
                              {block: here}),
        ),
        start=1,
    ):  # fmt: skip
        call()
        assert made() == some + n


def test_concepts_without_lambda_say_so(parts):
    network, images, concepts = parts
    bare = replace(concepts[BLOCKS[0]], lam=None)
    message = "the concepts of 'layer2.0' have no λ yet: see concepts.tune"
    with pytest.raises(ValueError, match=message):
        decompose(network, images, {BLOCKS[0]: bare})


def test_an_autoencoder_makes_its_own_codes(parts):
    network, images, concepts = parts
    block = BLOCKS[0]
    here = concepts[block]
    encoder, bias = torch.randn_like(here.vectors), torch.randn(len(here))
    own = {"encoder": encoder, "encoder_bias": bias}
    sae = SparseAutoencoder(here.vectors, here.beta, here.labels, block, **own)
    for image in images.split(1):
        x = network.positions(network.preactivations(image, [block])[block], block)
        codes = decompose(network, image, {block: sae}).codes[block]
        assert torch.allclose(codes, (x @ encoder.T + bias).clamp(min=0)) and codes.any()
    by_lasso = decompose(network, images, {block: replace(sae.dictionary(), lam=20.0)})
    assert torch.equal(by_lasso.codes[block], decompose(network, images, concepts).codes[block])


def test_pictures_that_do_not_fit_are_named(parts):
    network, images, concepts = parts
    with pytest.raises(ValueError, match="no picture to decompose"):
        decompose(network, images[:0], concepts)
    with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\)"):
        decompose(network, images[0], concepts)
    with pytest.raises(ValueError, match="NaN"):
        decompose(network, images / 0, concepts)
    with pytest.raises(KeyError, match="layer9.9"):
        decompose(network, images, {"layer9.9": concepts[BLOCKS[0]]})


# -------------------------------------------------------------------------------- a decomposition


@pytest.fixture(scope="module")
def d():
    """Three pictures in twelve concepts of three blocks; float64."""
    network = random_network("resnet18", torch.float64)
    return random_decomposition(network, {"layer2.0": 8, "layer3.1": 4, "layer4.1": 2}, 3)


@pytest.mark.parametrize(
    "removal",
    [
        {"layer3.1": 4},
        {"layer3.1": [4, 0, 7]},
        {"layer4.1": [1, 2], "layer2.0": 5},
        {"layer2.0": 5, "layer3.1": [0], "layer4.1": [1, 2]},
    ],
)
def test_what_is_taken_out_is_a_concept_times_its_codes(d, removal):
    """Position by position; what the concepts miss stays."""
    network = d.network
    order = [block for block in d.blocks if block in removal]
    x = network.preactivations(d.images, order[:1])[order[0]].clone()
    for block, above in zip(order, [*order[1:], None], strict=True):
        numbers = removal[block] if isinstance(removal[block], list) else [removal[block]]
        there = d.codes[block]
        if block != order[0]:  # what arrives is not what the codes say
            there = d.concepts[block].encode(x.flatten(2).mT)
            assert not torch.allclose(there, d.codes[block], atol=1e-2)
        for n, u in enumerate(there):
            for p in range(len(u)):
                row, column = divmod(p, x.shape[3])
                for q in numbers:
                    x[n, :, row, column] -= u[p, q] * d.concepts[block].vectors[q]
        x = network.between(x, block, above).clone() if above else network.logits_from(x, block)
    torch.testing.assert_close(d.logits(removal), x)
    assert not torch.allclose(x, d.logits(), rtol=1e-2)


def test_a_circuit_keeps_its_concepts_alone(d):
    """By hand: in each block the reconstruction from what is kept, of the codes of what arrives."""
    kept = {"layer2.0": [5, 6], "layer3.1": [0], "layer4.1": [1, 2, 3]}
    for rest in (False, True):
        x = d.network.preactivations(d.images, ["layer2.0"])["layer2.0"].flatten(2).mT
        for block, above in zip(kept, [*[*kept][1:], None], strict=True):
            here, numbers = d.concepts[block], kept[block]
            u = d.codes[block] if block == "layer2.0" else here.encode(x)
            only = here.beta + u[:, :, numbers] @ here.vectors[numbers]
            missed = x - here.beta - u @ here.vectors
            x = d.network.segment(block, above)(only + missed if rest else only)
        torch.testing.assert_close(d.circuit(kept, rest=rest), x)
    every = dict.fromkeys(d.blocks, range(12))
    torch.testing.assert_close(d.circuit(every), d.logits())
    last = d.concepts["layer4.1"]
    nothing = d.circuit(dict.fromkeys(d.blocks, []), rest=False)
    at_beta = d.network.segment("layer4.1")(last.beta.expand(3, 4, -1))
    torch.testing.assert_close(nothing, at_beta)


def test_logits_with_nothing_taken_out_are_the_networks(d):
    torch.testing.assert_close(d.logits(), d.network.logits(d.images))
    assert torch.equal(d.logits({}), d.logits())
    unused = {"layer3.1": []}
    torch.testing.assert_close(d.logits(unused), d.logits())


def test_without_sets_codes_to_zero(d):
    less = d.without({"layer3.1": [0, 7], "layer2.0": 5})
    for block, gone in {"layer3.1": [0, 7], "layer2.0": [5], "layer4.1": []}.items():
        left = [q for q in range(12) if q not in gone]
        assert not less.codes[block][:, :, gone].any()
        assert torch.equal(less.codes[block][:, :, left], d.codes[block][:, :, left])
    assert d.codes["layer3.1"][:, :, 0].any(), "a copy"
    gone = d.reconstruction("layer2.0") - less.reconstruction("layer2.0")
    by_hand = d.codes["layer2.0"][:, :, 5:6] * d.concepts["layer2.0"].vectors[5]
    torch.testing.assert_close(gone, by_hand)


def test_what_is_taken_out_does_not_join_the_rest(d):
    """X − u_q v_q = X̃ without q + ε: the rest of what is left is the picture's own."""
    removal = {"layer3.1": [0, 7]}
    less = d.without(removal)
    torch.testing.assert_close(less.residual("layer3.1"), d.residual("layer3.1"))
    torch.testing.assert_close(less[[1]].residual("layer3.1"), d.residual("layer3.1")[[1]])
    x = less.reconstruction("layer3.1") + less.residual("layer3.1")
    torch.testing.assert_close(d.network.segment("layer3.1")(x), d.logits(removal))


def test_some_pictures_and_some_blocks(d):
    for some, rows in ((d[[2, 0]], [2, 0]), (d[1:], [1, 2])):
        assert len(some) == 2 and some.blocks == d.blocks
        assert torch.equal(some.images, d.images[rows])
        assert all(torch.equal(u, d.codes[b][rows]) for b, u in some.codes.items())
        torch.testing.assert_close(some.logits(), d.logits()[rows])
    assert d.at("layer3.1").blocks == ("layer3.1",)
    assert d.at("layer2.0", "layer4.1").blocks == ("layer2.0", "layer4.1")
    here, there = (part.concepts["layer3.1"].fingerprint for part in (d, d.at("layer3.1")))
    assert here == there


def test_the_fingerprint_counts_network_pictures_concepts_and_codes(d):
    again = Decomposition(d.network, d.images.clone(), dict(d.concepts), dict(d.codes))
    assert again.fingerprint == d.fingerprint
    here = d.concepts["layer3.1"]
    others = [
        d[[0]], d[[1, 0, 2]], d.at("layer3.1"), d.without({"layer3.1": 0}),
        replace(d, images=d.images + 1e-3),
        replace(d, network=random_network("resnet18", torch.float64, seed=1)),
        replace(d, concepts=d.concepts | {"layer3.1": replace(here, beta=here.beta + 1)}),
        replace(d, codes=d.codes | {"layer3.1": 2 * d.codes["layer3.1"]}),
        replace(d, rests={"layer3.1": d.residual("layer3.1")}),
    ]  # fmt: skip
    assert len({other.fingerprint for other in [d, *others]}) == 1 + len(others)


def test_parts_that_do_not_fit_are_named(d):
    block = "layer3.1"
    u, here = d.codes[block], d.concepts[block]
    backwards = {b: dict(reversed(part.items())) for b, part in vars(d).items() if b in
                 ("concepts", "codes")}  # fmt: skip
    for parts in (backwards, {"codes": backwards["codes"]}, {"codes": {block: u}}):
        with pytest.raises(ValueError, match="the same blocks in the network's order"):
            replace(d, **parts)
    short = Concepts(here.vectors[:, 1:], here.beta[1:], here.labels)
    for codes, concepts in (
        (u[:2], here), (u[0], here), (u[:, :, :11], here), (u, short),
        (u, replace(here, vectors=here.vectors[:11])),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="do not fit 3 pictures and 256 channels"):
            Decomposition(d.network, d.images, {block: concepts}, {block: codes})
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="layer3.1: codes hold NaN or infinite"):
            Decomposition(d.network, d.images, {block: here}, {block: u + bad})
    with pytest.raises(KeyError, match="layer9.9"):
        Decomposition(d.network, d.images, {"layer9.9": here}, {"layer9.9": u})


def test_everything_lies_where_the_network_is_in_its_dtype(d):
    single = {b: c.to("cpu", torch.float32) for b, c in d.concepts.items()}
    codes = {b: u.float() for b, u in d.codes.items()}
    mixed = Decomposition(d.network, d.images.float(), single, codes)
    for part in (mixed.images, *mixed.codes.values(), *(c.beta for c in mixed.concepts.values())):
        assert part.dtype == torch.float64
    assert mixed.concepts["layer2.0"].labels.dtype == torch.long


# ------------------------------------------------------------------- an autoencoder of the reader's


class TopK(SparseAutoencoder):
    """The encoder's three largest codes."""

    def encode(self, x, *, tol=0.0):
        codes = F.relu(x @ self.encoder.T + self.encoder_bias)
        values, places = codes.topk(3, dim=-1)
        return torch.zeros_like(codes).scatter(-1, places, values)


def test_another_encode_is_other_concepts_everywhere(artifacts_folder, tmp_path):
    network, block = random_network("resnet18"), "layer4.1"
    torch.manual_seed(0)
    vectors, beta = torch.randn(12, 512), network.bn_shift(block)
    own = {"encoder": vectors / 512, "encoder_bias": torch.full((12,), 0.1)}
    relu, topk = (
        kind(vectors, beta, torch.arange(12), block, **own) for kind in (SparseAutoencoder, TopK)
    )
    assert relu.fingerprint != topk.fingerprint
    save(topk, tmp_path / "topk.safetensors")
    read = load(tmp_path / "topk.safetensors")
    assert type(read) is TopK and read.fingerprint == topk.fingerprint
    images = torch.randn(2, 3, 64, 64)
    every, few, again = (
        decompose(network, images, {block: concepts}) for concepts in (relu, topk, read)
    )
    assert torch.equal(few.codes[block], again.codes[block]), "read, where equal ones were made"
    for d in (few, again):
        x = network.preactivations(images, [block])[block].flatten(2).mT
        assert torch.equal(d.codes[block] != 0, read.encode(x) != 0)
    assert (few.codes[block] != 0).sum(-1).max() == 3 < (every.codes[block] != 0).sum(-1).max()
    relevance = attribute(few, block, 5)
    used = few.codes[block].any(dim=1)
    assert torch.equal(relevance[:, 0] != 0, used) and not used.all()
    curves = deletion_insertion(few, block, 5, relevance, tolerance=0)["logit"]
    change = curves.insertion.y[..., -1] - curves.insertion.y[..., 0]
    gap = (relevance.sum(dim=2) - change).abs()
    assert (gap <= 0.011 * change.abs()).all(), "complete: from b_d to its own reconstruction"

"""report/questions.py: tables against sums by hand, and what there is no answer to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import sparse_codes, tiny_network
from safetensors.torch import save_file
from scipy import stats

from gig_helpers import (
    Concepts,
    Decomposition,
    PFVDataset,
    attribute,
    class_concepts,
    contrast,
    matches,
    suspects,
)
from gig_helpers.codes import decompose
from gig_helpers.report.questions import class_number

NAMES = ("wren", "owl", "junco", "finch")

pytestmark = pytest.mark.usefixtures("artifacts_folder")


@pytest.fixture(scope="module")
def network():
    return tiny_network(classes=NAMES)


class Views:
    """Six views of five photographs: of the first there are two, the last cannot be read."""

    name = "views"
    paths = ("a", "a", "b", "c", "d", "e")
    labels = (1, 1, 0, None, None, 1)

    def __getitem__(self, rows):
        images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return images[rows]


@pytest.fixture
def pfvs(network, tmp_path):
    columns = {"pictures": torch.arange(5), "predictions": torch.tensor([1, 0, 1, 1, 0])}
    save_file(columns, tmp_path / "shard-000000.safetensors")
    return PFVDataset(tmp_path, "", (), network, Views(), {})


@pytest.fixture
def concepts(network):
    """Five concepts of either block; the last of each is never used."""
    made = {}
    for block in network.blocks:
        vectors = torch.randn(5, network.channels(block))
        vectors[4] *= 1e-3
        made[block] = Concepts(vectors, network.bn_shift(block), torch.arange(5), block, lam=0.2)
    return made


def test_what_a_class_rests_on(pfvs, concepts, network):
    """One view of the labelled photograph, and the unlabelled one that the network says it of."""
    table = class_concepts(pfvs, concepts, "owl", tolerance=0.01)
    assert list(table) == ["relevance", "low", "high", "in_use"]
    assert table["relevance"].is_monotonic_decreasing
    d = decompose(network, pfvs.pictures[[0, 3]], concepts)
    seen = 0
    for block in network.blocks:
        values = attribute(d, block, 1, tolerance=0.01)[:, 0].double().numpy()
        used = d.codes[block].any(dim=1).double().numpy()
        for q in range(5):
            if not used[:, q].any():
                assert (block, q) not in table.index
                continue
            row, own = table.loc[block, q], values[:, q]
            seen += 1
            assert row["relevance"] == pytest.approx(own.mean())
            low, high = stats.t.interval(0.95, 1, own.mean(), own.std(ddof=1) / np.sqrt(2))
            assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))
            assert row["in_use"] == used[:, q].mean()
    assert len(table) == seen < 10
    assert class_concepts(pfvs, concepts, 1, tolerance=0.01).equals(table), "by its number"


def test_a_concept_is_in_use_in_a_share_of_the_photographs(pfvs, concepts, network, monkeypatch):
    block, codes = network.blocks[-1], torch.zeros(2, 16, 5)
    codes[0, 3, 0], codes[:, 5, 1] = -1, 2
    monkeypatch.setattr(
        "gig_helpers.report.questions.decompose",
        lambda network, images, here: Decomposition(network, images, here, {block: codes}),
    )
    table = class_concepts(pfvs, {block: concepts[block]}, "owl")
    assert table["in_use"].to_dict() == {(block, 0): 0.5, (block, 1): 1.0}


def test_a_single_photograph_has_no_interval(pfvs, concepts):
    table = class_concepts(pfvs, concepts, "owl", most=1)
    assert table[["low", "high"]].isna().all(axis=None) and not table["relevance"].isna().any()
    d = decompose(pfvs.network, pfvs.pictures[[0]], concepts)  # the first of two
    for (block, q), relevance in table["relevance"].items():
        own = attribute(d, block, 1, tolerance=0.05)[0, 0, q]
        assert relevance == pytest.approx(float(own), rel=1e-4, abs=1e-6)
    alone = class_concepts(pfvs, concepts, "wren", most=1)
    assert not alone["relevance"].equals(table["relevance"])


def test_classes_that_there_are_not_are_named(pfvs, concepts):
    with pytest.raises(ValueError, match="no class 'owls'; it has owl, …"):
        class_concepts(pfvs, concepts, "owls")
    for number in (4, -1):
        with pytest.raises(ValueError, match=f"class {number} leaves 0 … 3"):
            class_concepts(pfvs, concepts, number)
    with pytest.raises(ValueError, match="no photograph of 'junco' in views"):
        class_concepts(pfvs, concepts, "junco")


def written(network, codes, scale=1.0):
    """Pictures with these codes (N, HW, k) at the last block, of vectors of one length."""
    block = network.blocks[-1]
    vectors = scale * torch.eye(network.channels(block))[: codes.shape[2]]
    concepts = Concepts(vectors, network.bn_shift(block), torch.arange(len(vectors)), block)
    images = torch.zeros(len(codes), 3, 16, 16)
    return Decomposition(network, images, {block: concepts}, {block: codes})


def test_pulls_sum_to_the_change_of_the_difference(network):
    codes = sparse_codes(2, 16, 6, share=0.7)
    codes[:, :, 2] = 0
    d = written(network, codes)
    block = d.blocks[0]
    table = contrast(d, block, "owl", 0, tolerance=1e-4)
    assert list(table) == ["owl", "wren", "pull"] and table.index.name == "concept"
    assert sorted(table.index) == [0, 1, 3, 4, 5] and table["pull"].is_monotonic_decreasing
    x = d.reconstruction(block)
    with torch.no_grad():
        ends = (network.segment(block)(part) for part in (x, d.concepts[block].beta.expand_as(x)))
        whole, none = (logits[:, 1] - logits[:, 0] for logits in ends)
    assert table["pull"].sum() == pytest.approx(float((whole - none).mean()), rel=1e-3)
    relevance = attribute(d, block, [1, 0], tolerance=1e-4).mean(dim=0)
    for q, row in table.iterrows():
        assert row["owl"] == pytest.approx(float(relevance[0, q]))
        assert row["pull"] == pytest.approx(row["owl"] - row["wren"])
    with pytest.raises(ValueError, match="no class 'jungco'; it has junco, …"):
        contrast(d, block, "owl", "jungco")


def test_suspects_by_hand(network):
    """Each wrong photograph's pulls are shares of it, each class's photographs one vote."""
    d = written(network, sparse_codes(6, 16, 5, share=0.7))
    block, said = d.blocks[0], d.logits().argmax(dim=1).tolist()  # the same for all: empty pictures
    others = [c for c in range(4) if c != said[0]]
    labels = [others[0], others[0], others[0], others[1], said[0], others[2]]
    table = suspects(d, block, labels, tolerance=1e-3)
    votes, pulls = {}, []
    for i in (0, 1, 2, 3, 5):
        both = attribute(d[[i]], block, [said[0], labels[i]], tolerance=1e-3)[0].double()
        pulls.append(both[0] - both[1])
        share = pulls[-1].clamp(min=0) / pulls[-1].clamp(min=0).sum()
        votes.setdefault(labels[i], []).append(share)
    share = torch.stack([torch.stack(each).mean(dim=0) for each in votes.values()]).mean(dim=0)
    pull = torch.stack(pulls)
    strongest = pull.argmax(dim=1).tolist()
    assert table["share"].is_monotonic_decreasing and sorted(table.index) == list(range(5))
    for q, row in table.iterrows():
        assert row["share"] == pytest.approx(float(share[q]), abs=1e-4)
        assert row["pull"] == pytest.approx(float(pull[:, q].mean()), abs=1e-4)
        assert row["photographs"] == strongest.count(q)
        won = {labels[i] for i, q_ in zip((0, 1, 2, 3, 5), strongest, strict=True) if q_ == q}
        assert row["classes"] == len(won)


def test_where_nothing_pulls_no_concept_is_first(network):
    """Two pictures alike, of which the second has the opposite codes: what pulls there, pushes."""
    d = written(network, torch.ones(2, 16, 1) * torch.tensor([1.0, -1.0])[:, None, None])
    block, said = d.blocks[0], d.logits().argmax(dim=1).tolist()
    labels = [next(c for c in range(4) if c != of_one) for of_one in said]
    both = [[of_one, label] for of_one, label in zip(said, labels, strict=True)]
    values = attribute(d, block, both, tolerance=1e-3)
    pulling = values[:, 0, 0] > values[:, 1, 0]
    assert pulling.tolist() in ([True, False], [False, True])
    table = suspects(d, block, labels, tolerance=1e-3)
    assert table.loc[0, ["share", "photographs", "classes"]].tolist() == [1, 1, 1]
    pushing = int((~pulling).nonzero())
    alone = suspects(d[[pushing]], block, [labels[pushing]], tolerance=1e-3)
    assert alone.loc[0, ["photographs", "classes"]].tolist() == [0, 0]


def test_a_photograph_that_is_right_is_no_suspicion(network):
    d = written(network, sparse_codes(2, 16, 5, share=0.7))
    said = d.logits().argmax(dim=1).tolist()
    with pytest.raises(ValueError, match="none of 2 pictures wrong"):
        suspects(d, d.blocks[0], said)
    with pytest.raises(ValueError, match="3 labels for 2 pictures"):
        suspects(d, d.blocks[0], [*said, 0])


def presences(rows):
    """Codes (N, 2, k) whose sums over two positions are these, of either sign."""
    mass = torch.tensor(rows, dtype=torch.float32)
    return torch.stack([0.25 * mass, -0.75 * mass], dim=1)


def test_matches_by_hand(network):
    # Concept 2 is the same everywhere, and concept 0 falls where the other's 1 rises.
    d = written(network, presences([[4.0, 1, 1], [2, 2, 1], [0, 6, 1]]), scale=3.0)
    other = written(network, presences([[0.0, 1, 2], [0, 3, 4], [0, 5, 12]]))
    table = matches(d, d.blocks[0], other, other.blocks[0])
    assert table.index.tolist() == [1, 0] and table.index.name == "concept"
    assert table["match"].tolist() == [2, 2]
    for q, mine in ((0, [4, 2, 0]), (1, [1, 2, 6])):
        expected = stats.pearsonr(mine, [2, 4, 12]).statistic
        assert table["correlation"][q] == pytest.approx(expected, abs=1e-6)
    back = matches(other, other.blocks[0], d, d.blocks[0])
    assert back["match"].to_dict() == {1: 1, 2: 1}
    # What varies by rounding alone does not vary, of however large codes.
    for size in (1e6, 1e-6):
        mine = written(network, size * presences([[4.0, 1, 1], [2, 2, 1], [0, 6, 1]]).double())
        codes = mine.codes[mine.blocks[0]]
        codes[0, :, 2] *= 1 + 1e-12
        again = matches(mine, mine.blocks[0], other, other.blocks[0])
        assert again["match"].to_dict() == table["match"].to_dict(), size


def test_a_family_is_where_its_atoms_are_by_their_lengths(network):
    d = written(network, presences([[1.0, 1, 0], [0, 1, 1], [2, 4, 1]]))
    block = d.blocks[0]
    here = d.concepts[block]
    vectors = here.vectors * torch.tensor([[1.0], [1], [10]])
    families = replace(here, vectors=vectors, parents=torch.tensor([0, 0, 0]), level=2)
    of_families = replace(d, concepts={block: families})
    table = matches(of_families, block, d, block)
    assert table["match"].to_dict() == {0: 2, 1: 1}, "atoms 0 and 2; atom 1"
    expected = stats.pearsonr([1, 10, 12], [0, 1, 1]).statistic
    assert table["correlation"][0] == pytest.approx(expected, abs=1e-6)


def test_pictures_without_a_match_are_named(network):
    d = written(network, presences([[4.0, 1], [2, 2], [0, 6]]))
    block = d.blocks[0]
    for first, second in ((d, d[:2]), (d[:2], d[:2])):
        with pytest.raises(ValueError, match="give the same ones to both, three or more"):
            matches(first, block, second, block)
    alike = written(network, presences([[4.0, 1]] * 3))
    with pytest.raises(ValueError, match="no concept of .* is in one picture more than in another"):
        matches(d, block, alike, block)
    assert matches(alike, block, d, block).empty


def test_a_picture_without_a_label_names_no_class(network):
    with pytest.raises(ValueError, match="name one"):
        class_number(network, None)
    few = ", ".join(network.classes[:3])
    with pytest.raises(ValueError, match=f"no class 'zzz'; it has {few}, …"):
        class_number(network, "zzz")

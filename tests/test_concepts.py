"""concepts.py: averages of clusters, codes and back, their λ, and what they are found again by."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import random_network, save_pictures
from torch.nn import functional as F

from gig_helpers import (
    EXTRACTORS,
    Concepts,
    Profile,
    SparseAutoencoder,
    extractor,
    families,
    fit_concepts,
    load_pictures,
    sample,
)
from gig_helpers import concepts as concepts_module
from gig_helpers.clustering import BisectingSphericalKMeans
from gig_helpers.concepts import (
    concept_vectors,
    extract,
    load,
    nearest_concept,
    save,
    support_of,
    tune,
)
from gig_helpers.lasso import duality_gap


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
    entropy = concepts.class_entropy(torch.tensor([5, 5, 7, 7, 2, 2, 9]))
    torch.testing.assert_close(entropy, torch.tensor([1.0, 0.0, torch.nan, 0.0]), equal_nan=True)
    with pytest.raises(ValueError, match="one class for each of 7"):
        concepts.class_entropy(torch.tensor([1]))


@pytest.mark.parametrize("wanted", [2, 5])
def test_tune_gives_the_count(wanted):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(150, 12, generator=generator) + 3
    concepts = extract(x, torch.full((12,), 3.0), 30)
    tuned = tune(concepts, x, nonzeros=wanted)
    count = (tuned.encode(x) != 0).sum(1).double().mean()
    # All of these PFVs are those that λ was chosen on: the 2 % of lambda_for, and codes that its
    # looser tolerance leaves just above zero.
    assert count == pytest.approx(wanted, rel=0.05)
    assert torch.equal(tuned.vectors, concepts.vectors) and concepts.lam is None


def test_tune_is_as_strict_as_so_few_codes_allow(monkeypatch):
    """2 % of many; of 10 PFVs with 2 codes one in 20; a tenth of 4 with one."""
    asked, concepts = [], Concepts(torch.eye(4), torch.zeros(4), torch.arange(4))
    found = lambda *given, rtol, **options: asked.append(rtol) or 1.0  # noqa: E731
    monkeypatch.setattr(concepts_module.lasso, "lambda_for", found)
    for count, nonzeros in ((300, 3), (10, 2), (4, 1)):
        tune(concepts, torch.rand(count, 4), nonzeros)
    assert asked == pytest.approx([0.02, 0.05, 0.1])


def test_tune_asks_for_the_papers_count_and_draws_with_its_seed():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator)
    concepts = extract(x, torch.zeros(12), 20, block="layer1.1")
    assert tune(concepts, x).lam == tune(concepts, x, nonzeros=2, seed=0).lam
    assert tune(concepts, x).lam != tune(concepts, x, seed=1).lam, "other PFVs"
    assert tune(concepts, x.double()).lam == tune(concepts, x).lam, "in the concepts' precision"
    many = extract(x, torch.zeros(12), 80, block="layer1.1")
    assert tune(many, x).lam == tune(many, x, nonzeros=5).lam, "80 / 16"
    elsewhere = replace(many, block="blocks.3")
    assert tune(elsewhere, x).lam == tune(many, x, nonzeros=2).lam, "12 / 32, 2 at least"


def test_codes_are_as_near_to_the_optimum_as_was_asked_for():
    """Of the Lasso with the concepts' own β and λ."""
    torch.manual_seed(0)
    concepts = Concepts(torch.randn(20, 6), torch.randn(6), torch.arange(20), "layer4.2", 2.5)
    x = 3 * torch.randn(4, 5, 6)
    codes, rough = concepts.encode(x), concepts.encode(x, tol=0.3)
    assert codes.shape == (4, 5, 20) and codes.any()
    gaps = [duality_gap(x, concepts.vectors, u, 2.5, beta=concepts.beta) for u in (codes, rough)]
    assert gaps[0].max() < 1e-4 < gaps[1].max() <= 0.3
    by_hand = concepts.beta + torch.einsum("npk,kc->npc", codes, concepts.vectors)
    torch.testing.assert_close(concepts.decode(codes), by_hand)


def test_a_lambda_that_is_not_chosen_is_not_zero():
    bare = Concepts(torch.eye(3), torch.zeros(3), torch.arange(3), "layer4.2")
    with pytest.raises(ValueError, match="of 'layer4.2' have no λ yet: see concepts.tune"):
        bare.encode(torch.ones(3))
    assert replace(bare, lam=0.5).encode(torch.ones(3)).tolist() == [0.5, 0.5, 0.5]


@dataclass(frozen=True)
class Scaled(Concepts):
    """Concepts with fields of their own: a tensor, numbers, a text."""

    scale: torch.Tensor = torch.ones(1)
    powers: tuple[float, ...] = ()
    note: str = ""

    def encode(self, x, *, tol=0.0):
        return self.scale * ((x - self.beta) @ self.vectors.T)


def test_the_fingerprint_counts_every_field():
    concepts = Concepts(torch.eye(3), torch.zeros(3), torch.arange(3), "layer4.2", 1.0)
    same = replace(concepts, vectors=torch.eye(3))
    assert concepts.fingerprint == same.fingerprint
    others = [
        replace(concepts, vectors=2 * torch.eye(3)),
        replace(concepts, beta=torch.ones(3)),
        replace(concepts, labels=torch.zeros(3)),
        replace(concepts, block="layer4.1"),
        replace(concepts, lam=2.0),
        replace(concepts, lam=None),
        replace(concepts, parents=torch.tensor([0, 0, 1])),
        replace(concepts, parents=torch.tensor([0, 0, 1]), level=2),
        concepts.to("cpu", torch.float64),
    ]
    parts = concepts.vectors, concepts.beta, concepts.labels, "layer4.2", 1.0
    encoder = {"encoder": torch.eye(3), "encoder_bias": torch.zeros(3)}
    others += [
        SparseAutoencoder(*parts, **encoder),
        SparseAutoencoder(*parts, **encoder | {"encoder": 2 * torch.eye(3)}),
        Scaled(*parts), Scaled(*parts, scale=torch.zeros(1)), Scaled(*parts, powers=(1.0,)),
        Scaled(*parts, note="mine"),
    ]  # fmt: skip
    assert len({each.fingerprint for each in [concepts, *others]}) == 1 + len(others)


def test_concepts_with_fields_of_their_own_are_kept(tmp_path):
    made = Scaled(
        torch.randn(3, 4), torch.randn(4), torch.arange(3), "layer4.2",
        scale=torch.tensor([0.1]), powers=(1.0, 2.5), note="é",
    )  # fmt: skip
    save(made, tmp_path / "scaled.safetensors")
    read = load(tmp_path / "scaled.safetensors")
    assert type(read) is Scaled and read.fingerprint == made.fingerprint
    assert (read.block, read.lam) == ("layer4.2", None)
    assert (read.powers, read.note) == ((1.0, 2.5), "é")
    x = torch.randn(5, 4)
    assert torch.equal(read.encode(x), made.encode(x))
    assert read.to("cpu", torch.float64).scale.dtype == torch.float64


def test_a_class_that_is_not_there_says_what_to_do(tmp_path):
    path = tmp_path / "it.safetensors"
    save(Scaled(torch.eye(2), torch.zeros(2), torch.arange(2)), path)
    path.write_bytes(path.read_bytes().replace(b"Scaled", b"Absent"))
    with pytest.raises(LookupError, match="it.safetensors holds a Absent: import the module that"):
        load(path)


# --------------------------------------------------------------------------------- of a data set

BLOCKS = ("layer1.0", "layer3.0")
PROFILE = Profile(blocks=BLOCKS, per_image=6, pfvs_per_concept=4, batch_size=4, families=None)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """PFVs of eight pictures by a small network."""
    folder = tmp_path_factory.mktemp("sampled")
    with pytest.MonkeyPatch.context() as here:
        here.setenv("GIG_ARTIFACTS", str(folder / "artifacts"))
        pictures = load_pictures(str(save_pictures(folder / "pictures", 8)))
        return sample(random_network("basic"), pictures, PROFILE)


def test_concepts_of_a_dataset_are_kept(sampled, artifacts_folder, monkeypatch):
    network = sampled.network
    made = fit_concepts(sampled, PROFILE)
    assert list(made) == list(BLOCKS)
    for block, concepts in made.items():
        x, beta = sampled.vectors(block), network.bn_shift(block)
        k = PROFILE.n_concepts(network.channels(block), 48)
        expected = extract(x, beta, k, PROFILE.seed, block=block)
        expected = tune(expected, x, seed=PROFILE.seed)
        assert len(concepts) == k == 12 and concepts.block == block
        assert torch.equal(concepts.labels, expected.labels)
        torch.testing.assert_close(concepts.vectors, expected.vectors)
        torch.testing.assert_close(concepts.beta, beta)
        assert concepts.lam == pytest.approx(expected.lam)
    with monkeypatch.context() as patch:  # read, not made again
        patch.setattr("gig_helpers.concepts.tune", None)
        again = fit_concepts(sampled, PROFILE, BLOCKS[1:])
    assert list(again) == [BLOCKS[1]]
    assert again[BLOCKS[1]].fingerprint == made[BLOCKS[1]].fingerprint
    with pytest.raises(KeyError, match="no PFVs of 'layer2.0'"):
        fit_concepts(sampled, PROFILE, ["layer2.0"])
    with pytest.raises(ValueError, match="unknown extractor 'best': choose bisecting or"):
        fit_concepts(sampled, PROFILE, extractor="best")


def test_options_of_a_fit_are_kept_apart(sampled, artifacts_folder, monkeypatch):
    """PFVs, extractor, k, seed, what is held out, non-zeros: each has a file of its own."""
    block = BLOCKS[1]

    def fit(**options):
        return fit_concepts(sampled, PROFILE, [block], **options)[block]

    plain = fit()
    assert fit(k=12, seed=0, extractor="bisecting").fingerprint == plain.fingerprint
    others = [
        fit(k=7), fit(seed=1), fit(extractor="random_pfvs"), fit(held_out=True),
        fit(extractor="sae_short"), fit(extractor="kmeans"), fit(per_image=4),
        fit(k=7, held_out=True),
    ]  # fmt: skip
    by_profile = fit_concepts(sampled, replace(PROFILE, seed=1), [block])[block]
    assert by_profile.fingerprint == others[1].fingerprint, "the profile's seed is as good"
    with monkeypatch.context() as patch:
        patch.setattr("gig_helpers.lasso.wanted_nonzeros", lambda *_: 1.0)
        others.append(fit())
    assert len(fit(k=10)) == 10, "as many non-zeros as twelve have"
    fit_concepts(replace(sampled, fingerprint="of other pictures"), PROFILE, [block])
    assert len(list(artifacts_folder.glob("concepts-*"))) == 3 + len(others)
    assert len({each.fingerprint for each in [plain, *others]}) == 1 + len(others)
    seven, seeded, drawn, held, sae, _, few, _, sparser = others
    assert torch.equal(sparser.vectors, plain.vectors) and sparser.lam > plain.lam
    assert len(seven) == 7 and not torch.equal(seeded.labels, plain.labels)
    x = sampled.vectors(block)
    distance = torch.cdist((drawn.vectors + drawn.beta).double(), x.double())
    assert distance.amin(1).max() < 1e-4, "PFVs themselves"
    left = ~sampled.held_out(block)
    assert len(held.labels) == int(left.sum()) == 36 and len(held) == 9
    expected = extract(x[left], plain.beta, 9, block=block)
    torch.testing.assert_close(held.vectors, expected.vectors)
    ids = sampled.picture_ids(block).tolist()
    first = [n for n, i in enumerate(ids) if ids[:n].count(i) < 4]
    assert len(first) < len(x)
    expected = extract(x[first], plain.beta, len(few), block=block)
    torch.testing.assert_close(few.vectors, expected.vectors)
    assert isinstance(sae, SparseAutoencoder) and sae.lam is None and len(sae.losses) == 5
    assert sae.encode(x).any()


def test_a_fit_of_ones_own_is_one_function(sampled, artifacts_folder):
    @extractor("first", "first PFVs")
    def first(x, beta, k, seed=0, *, block=""):
        return Concepts(x[:k] - beta, beta, torch.zeros(len(x)).long(), block)

    try:
        assert EXTRACTORS["first"].title == "first PFVs"
        concepts = fit_concepts(sampled, PROFILE, BLOCKS[:1], extractor="first", k=5)[BLOCKS[0]]
        beta = sampled.network.bn_shift(BLOCKS[0])
        torch.testing.assert_close(concepts.vectors, sampled.vectors(BLOCKS[0])[:5] - beta)
        assert concepts.lam > 0, "tuned like all that the Lasso encodes"
    finally:
        EXTRACTORS.pop("first")


def test_a_block_without_batch_norm_has_its_mean_for_beta(sampled, artifacts_folder, monkeypatch):
    monkeypatch.setattr(sampled.network, "shift", lambda block: None)
    block = BLOCKS[1]
    concepts = fit_concepts(sampled, PROFILE, [block], k=5)[block]
    torch.testing.assert_close(concepts.beta, sampled.vectors(block).mean(dim=0))


def test_the_level_is_the_profiles_or_the_datas(sampled, artifacts_folder):
    block = BLOCKS[1]
    atoms = fit_concepts(sampled, PROFILE)[block]
    three = fit_concepts(sampled, replace(PROFILE, families=3))[block]
    assert (atoms.level, len(atoms)) == (None, 12) and (three.level, len(three)) == (3, 3)
    assert torch.equal(three.vectors, atoms.vectors), "one fit holds every level"
    assert len(fit_concepts(sampled, replace(PROFILE, families=99))[block]) == 12
    table = support_of(sampled, atoms)
    assert table.index.tolist() == [4, 8, 12]
    for level in table.index:
        family = atoms.at(level).assigned
        owners = [
            len(sampled.photographs[sampled.picture_ids(block)[family == f]].unique())
            for f in range(level)
        ]
        assert table.loc[level, "photographs"] == sorted(owners)[(level - 1) // 2]
        assert table.loc[level, "alone"] == sum(n == 1 for n in owners) / level
    profile = replace(PROFILE, families="supported")
    if (level := families.supported(table)) is not None:
        assert fit_concepts(sampled, profile)[block].level == level
    # One photograph supports nothing, and that is said.
    alone = replace(sampled, pictures=replace(sampled.pictures, paths=("a.png",) * 8))
    told = "support no number of families, so the smallest tried, 4"
    with pytest.warns(UserWarning, match=told) as caught:
        assert fit_concepts(alone, profile)[block].level == 4
    assert {w.filename for w in caught if told in str(w.message)} == {__file__}


def test_levels_are_supported_by_the_photographs_that_made_the_concepts(monkeypatch):
    """Eight photographs of two views and a PFV each, of which every fourth is held out."""
    ids, classes, asked = torch.arange(16), torch.arange(16) % 5, []
    out = ids // 2 % 4 == 0
    pfvs = SimpleNamespace(
        pictures="all", photographs=ids // 2, picture_ids=lambda block: ids,
        classes=lambda: classes, vectors=lambda block: ids[:, None].float(),
        held_out=lambda block: out, count=lambda block: 16,
    )  # fmt: skip

    def agreement(x, beta, photographs, classes):
        asked.append((x[:, 0].long(), photographs, classes))
        return torch.zeros(5, len(families.LEVELS))

    found_anew = concepts_module._agreement.__wrapped__
    monkeypatch.setattr(concepts_module, "_agreement", found_anew)
    monkeypatch.setattr(families, "agreement", agreement)
    monkeypatch.setattr(families, "support", lambda labels, parents, of, excess: (of, len(excess)))
    concepts = Concepts(torch.eye(2), torch.zeros(2), ids[~out] % 2, parents=torch.zeros(2).int())
    for small, splits in ((6, 5), (7, 0)):
        monkeypatch.setattr(families, "SMALL", small)
        photographs, found = support_of(pfvs, concepts, held_out=True)
        assert torch.equal(photographs, ids[~out] // 2) and found == splits
    ((kept, photographs, of_class),) = asked
    assert torch.equal(kept, ids[~out]) and torch.equal(photographs, kept // 2)
    assert torch.equal(of_class, classes[~out])


def test_a_fit_without_some_photographs_asks_the_others_for_its_level(
    sampled, artifacts_folder, monkeypatch
):
    asked = []
    monkeypatch.setattr(concepts_module, "support_of", lambda *_, held_out: asked.append(held_out))
    monkeypatch.setattr(families, "supported", lambda table: 3)
    profile = replace(PROFILE, families="supported")
    for held_out in (False, True):
        found = fit_concepts(sampled, profile, BLOCKS[1:], held_out=held_out)
        assert found[BLOCKS[1]].level == 3
    assert asked == [False, True]

"""report/studies.py: studies are what the functions find, are kept, and choose fair pictures."""

import types
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import random_network

from gig_helpers import METHODS, Concepts, Profile, attribute, decompose, deletion_insertion, method
from gig_helpers.curves import SCORES
from gig_helpers.importance import Method
from gig_helpers.report.studies import WRONG_TARGET, evaluated, present_targets, study

ORDERS = ["random", "gig"]
LABELS = [0, 1, 2]
CLASSES = [[label] for label in LABELS]
HERE, LATER = "layer3.0", "layer4.0"
PROFILE = Profile(gap=0.05, bracket=0.05, evaluation_targets=2)
# Batches of another size round differently in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SHARES = torch.linspace(0, 1, 29)

pytestmark = pytest.mark.usefixtures("artifacts_folder")


@pytest.fixture(scope="module")
def d(tmp_path_factory):
    """Three pictures of a small network, in seven concepts of either of two blocks."""
    network = random_network("v1.5", width_per_group=8)
    images = torch.randn(3, 3, 64, 64)
    concepts = {}
    for block, x in network.preactivations(images, (HERE, LATER)).items():
        beta = network.bn_shift(block)
        vectors = x.transpose(0, 1).flatten(1).T[:7] - beta
        concepts[block] = Concepts(vectors.clone(), beta, torch.zeros(7), block, lam=0.5)
    with pytest.MonkeyPatch.context() as here:
        here.setenv("GIG_ARTIFACTS", str(tmp_path_factory.mktemp("codes")))
        return decompose(network, images, concepts)


@pytest.fixture(scope="module")
def targets(d):
    return present_targets(d, HERE, LATER, LABELS, PROFILE)


def both(d, targets, profile=PROFILE):
    """A study of classes and one of later concepts."""
    n = len(d)
    of_classes = study(d, HERE, CLASSES[:n], ORDERS, profile)
    return of_classes, study(d, HERE, (LATER, targets[:n]), ORDERS, profile)


def assert_same_curves(kept, direct):
    for way in ("deletion", "insertion"):
        stored, other = (getattr(curves, way) for curves in (kept, direct))
        torch.testing.assert_close(stored.at(SHARES), other.at(SHARES), **CLOSE)


def test_what_is_there_is_not_run_again(d, targets, artifacts_folder, monkeypatch):
    first = both(d[:2], targets)
    made = len(list(artifacts_folder.iterdir()))
    assert made == 4, "a file for each picture and study"
    with monkeypatch.context() as patch:
        patch.setattr("gig_helpers.report.studies.deletion_insertion", None)
        # Another batch size is not another study.
        again = both(d[:2], targets, replace(PROFILE, batch_size=3))
    for earlier, later in zip(first, again, strict=True):
        assert all(torch.equal(earlier.importance[m], later.importance[m]) for m in ORDERS)
    third = both(d, targets)
    assert len(list(artifacts_folder.iterdir())) == made * 3 // 2
    for earlier, later in zip(first, third, strict=True):
        assert all(torch.equal(earlier.importance[m], later.importance[m][:2]) for m in ORDERS)


def test_what_a_study_is_found_again_by(d, targets, artifacts_folder):
    """Blocks, targets, orders, gap, bracket and seed: each makes a study of its own."""
    few = d[[0]]

    def run(source=HERE, target=0, orders=("activation",), d=few, **sizes):
        study(d, source, target, orders, replace(PROFILE, **sizes))
        return len(list(artifacts_folder.iterdir()))

    assert run() == run(target=[[0]]) == run(d=few.at(HERE)) == 1, "other blocks do not count"
    for made, other in enumerate(
        (
            {"target": 1}, {"target": [0, 1]}, {"source": LATER}, {"target": (LATER, targets[0])},
            {"orders": ["random"]}, {"orders": ["gradient"]}, {"orders": ["random in use"]},
            {"gap": 0.06}, {"bracket": 0.06}, {"seed": 1}, {"d": d[[1]]},
            {"d": few.without({HERE: 0})},
        ),
        start=2,
    ):  # fmt: skip
        assert run(**other) == run(**other) == made, other


def test_a_study_of_classes_is_what_the_functions_find(d):
    kept = study(d, HERE, CLASSES, ORDERS, PROFILE)
    assert list(kept.curves) == list(kept.importance) == ORDERS
    importance = attribute(d, HERE, CLASSES, tolerance=0.05)
    torch.testing.assert_close(kept.importance["gig"], importance, **CLOSE)
    assert (kept.gaps["gig"] <= 0.05 + 1e-4).all(), "what is kept is what was asked for"
    change = kept.curves["gig"]["logit"].insertion.y[..., [0, -1]].diff(dim=2)[..., 0]
    gaps = (importance.sum(dim=2) - change).abs() / change.abs()
    torch.testing.assert_close(kept.gaps["gig"], gaps.float(), rtol=1e-2, atol=1e-4)
    assert kept.importance["random"].unique(dim=0).shape[0] == 3, "a draw per picture"
    for order in ORDERS:
        direct = deletion_insertion(d, HERE, CLASSES, kept.importance[order], tolerance=0.05)
        assert set(direct) == set(kept.curves[order]) == set(SCORES)
        for score, curves in direct.items():
            assert_same_curves(kept.curves[order][score], curves)


def test_random_orders_follow_the_profiles_seed(d):
    for seed in (0, 5):
        kept = study(d, HERE, CLASSES, ["random"], replace(PROFILE, seed=seed))
        for n in range(3):
            drawn = attribute(d[[n]], HERE, CLASSES[n], method="random", seed=seed + n)
            assert torch.equal(kept.importance["random"][n], drawn[0])


def test_a_wrong_class_is_that_of_the_next_picture_that_has_another(d):
    classes = [[0], [0], [1]]
    kept = study(d, HERE, classes, ["random", WRONG_TARGET], PROFILE)
    others = attribute(d, HERE, [[1], [1], [0]], tolerance=0.05)
    torch.testing.assert_close(kept.importance[WRONG_TARGET], others, **CLOSE)
    direct = deletion_insertion(d, HERE, classes, kept.importance[WRONG_TARGET], tolerance=0.05)
    assert_same_curves(kept.curves[WRONG_TARGET]["logit"], direct["logit"])

    each = study(d, HERE, CLASSES, [WRONG_TARGET], PROFILE).importance[WRONG_TARGET]
    others = attribute(d, HERE, [[1], [2], [0]], tolerance=0.05)
    torch.testing.assert_close(each, others, **CLOSE)


def test_gaps_and_brackets_are_as_small_as_the_profile_asks(d):
    loose, fine = (
        study(d, HERE, CLASSES, ["gig"], replace(PROFILE, gap=gap, bracket=bracket))
        for gap, bracket in ((0.3, 0.3), (0.002, 0.0))
    )
    assert fine.gaps["gig"].max() <= 0.0021 < loose.gaps["gig"].max() < 0.3
    both = [made.curves["gig"]["probability"] for made in (loose, fine)]
    open_ = [max(float(c.deletion.bracket.max()), float(c.insertion.bracket.max())) for c in both]
    assert open_[1] == 0 < open_[0] <= 0.3, "0 runs every state"


def test_where_all_are_of_one_class_the_wrong_one_is_said_instead(d, targets):
    first, second = d.logits().topk(2).indices[0].tolist()
    for own, instead in ((first, second), (second, first)):
        one = study(d[[0]], HERE, own, [WRONG_TARGET], PROFILE).importance[WRONG_TARGET]
        torch.testing.assert_close(one, attribute(d[[0]], HERE, instead, tolerance=0.05), **CLOSE)
    with pytest.raises(ValueError, match="two targets or more"):
        study(d, HERE, (LATER, targets[:, :1]), [WRONG_TARGET], PROFILE)


def test_a_study_of_later_concepts_is_what_the_functions_find(d, targets):
    orders = [*ORDERS, WRONG_TARGET]
    kept = study(d, HERE, (LATER, targets), orders, PROFILE)
    assert list(kept.curves) == list(kept.importance) == orders
    assert torch.equal(kept.importance[WRONG_TARGET], kept.importance["gig"][:, [1, 0]])
    assert (kept.gaps["gig"] <= 0.05 + 1e-4).all()
    assert kept.gaps["random"].max() > 0.05, "nothing makes a random order complete"
    for order in orders:
        given = d, HERE, (LATER, targets), kept.importance[order]
        direct = deletion_insertion(*given, tolerance=0.05)["projection"]
        assert_same_curves(kept.curves[order]["projection"], direct)


def test_wrong_targets_of_a_later_block_need_no_gig_of_their_own(d, monkeypatch):
    """Each is another of the picture's own, whose attributions are there."""
    asked = []

    def counted(of):
        asked.append(of.targets.tolist())
        return METHODS["gradient"].importance(of)

    monkeypatch.setitem(METHODS, "gig", Method(counted, "counted"))
    for own, place in (([2, 0, 1], [2, 0, 1]), ([2, 0, 2, 0], [1, 0, 1, 0])):
        target = LATER, torch.tensor([own])
        kept = study(d[:1], HERE, target, ["gig", WRONG_TARGET], PROFILE).importance
        assert asked.pop() == [own] and not asked
        assert torch.equal(kept[WRONG_TARGET], kept["gig"][:, place])


def test_targets_are_chosen_as_exactly_as_the_profile_asks(d, monkeypatch):
    asked = []

    def noted(*given, **options):
        asked.append((options["tolerance"], options["batch_size"]))
        return attribute(*given, **options)

    monkeypatch.setattr("gig_helpers.report.studies.attribute", noted)
    present_targets(d[[0]], HERE, LATER, [0], replace(PROFILE, gap=0.07, batch_size=3))
    assert asked == [(0.07, 3)]


def test_targets_are_there_and_the_most_relevant(d, targets):
    assert targets.shape == (3, 2)
    relevance = attribute(d, LATER, CLASSES, tolerance=0.05)[:, 0]
    after = d.network.segment(HERE, LATER)(d.reconstruction(HERE))
    projections = (after @ d.concepts[LATER].vectors.T).amax(dim=1)
    for n, chosen in enumerate(targets.tolist()):
        present = (d.codes[LATER][n] > 0).any(0) & (projections[n] > 0)
        assert present[chosen].all()
        assert relevance[n, chosen[0]] >= relevance[n, chosen[1]]
        others = [q for q in present.nonzero()[:, 0].tolist() if q not in chosen]
        assert all(relevance[n, q] <= relevance[n, chosen[1]] + 1e-4 for q in others)
    # The first one turned round, with its codes: as relevant as before, but there negatively.
    best = int(targets[0, 0])
    codes, vectors = d.codes[LATER][:1].clone(), d.concepts[LATER].vectors.clone()
    codes[:, :, best] *= -1
    vectors[best] *= -1
    later = replace(d.concepts[LATER], vectors=vectors)
    turned = replace(
        d[[0]], concepts=d.concepts | {LATER: later}, codes=d[[0]].codes | {LATER: codes}
    )  # fmt: skip
    assert not (codes[0, :, best] > 0).any()
    others = present_targets(turned, HERE, LATER, [0], PROFILE)
    assert others[0, 0] == targets[0, 1] and best not in others[0]
    many = replace(PROFILE, evaluation_targets=8)
    with pytest.raises(ValueError, match=r"has \d targets at layer4.0, not 8"):
        present_targets(d[:1], HERE, LATER, [0], many)
    # With negative codes alone it is not there, wherever it points.
    there = (d.codes[LATER][0] > 0).any(dim=0) & (projections[0] > 0)
    codes = d.codes[LATER][:1].clone()
    codes[:, :, best] *= -1
    against = replace(d[[0]], codes=d[[0]].codes | {LATER: codes})
    with pytest.raises(ValueError, match=f"has {int(there.sum()) - 1} targets"):
        present_targets(against, HERE, LATER, [0], many)


def test_a_method_of_ones_own_is_run_again_when_its_code_changes(d, artifacts_folder):
    """Written in a notebook, where there is no file to read it from."""
    code = "def mass(asked):\n    return {} * asked.codes.abs().sum(dim=1, keepdim=True)"
    importance = []
    try:
        for number, times in enumerate((2, 3, 2)):
            notebook = types.ModuleType("__main__")
            exec(code.format(times), vars(notebook))
            method("mass", cost="nothing")(notebook.mass)
            importance.append(study(d[[0]], HERE, 0, ["mass"], PROFILE).importance["mass"])
            assert len(list(artifacts_folder.iterdir())) == min(number + 1, 2)
    finally:
        METHODS.pop("mass")
    torch.testing.assert_close(3 * importance[0], 2 * importance[1])
    assert torch.equal(importance[0], importance[2])


def test_methods_that_one_function_makes_are_kept_apart(d, artifacts_folder):
    def powered(power):
        def of_codes(asked):
            return asked.codes.abs().pow(power).sum(dim=1, keepdim=True)

        return of_codes

    names = ["square", "cube"]
    try:
        for power, name in enumerate(names, start=2):
            method(name, cost="nothing")(powered(power))
        kept = [study(d[[0]], HERE, 0, [name], PROFILE).importance[name] for name in names]
    finally:
        for name in names:
            METHODS.pop(name)
    assert len(list(artifacts_folder.iterdir())) == 2 and not torch.equal(*kept)


def test_bad_input_is_named(d):
    with pytest.raises(ValueError, match=r"expected \(T,\), or \(N, T\) of 3"):
        study(d, HERE, [[0], [1]], ORDERS, PROFILE)
    with pytest.raises(ValueError, match="unknown method 'best'"):
        study(d, HERE, 0, ["best"], PROFILE)
    with pytest.raises(KeyError, match="'layer2.0' is not decomposed"):
        study(d, "layer2.0", 0, ORDERS, PROFILE)


def dataset(photographs, right):
    """The photograph of each view, and the views that the network gets right."""
    return SimpleNamespace(
        pictures=SimpleNamespace(name="views"), right=lambda: sorted(right),
        photographs=torch.tensor(photographs),
    )  # fmt: skip


def test_evaluated_pictures_are_spread_over_the_photographs():
    views = [n for n in range(10) for _ in range(3)]  # three views of each of ten photographs
    right = set(range(30)) - {0, 6, 7, 8}  # one view of the first, all of the third
    pfvs = dataset(views, right)
    # The first view that is right of each photograph that has one:
    first = [1, 3, 9, 12, 15, 18, 21, 24, 27]
    assert evaluated(pfvs, 9) == first
    assert evaluated(pfvs, 3) == [1, 12, 21]
    # Also where they do not go into each other without a rest: the last ones are not left out.
    assert evaluated(pfvs, 5) == [1, 3, 12, 18, 24]
    more = evaluated(pfvs, 12)
    assert more[:9] == first and more[9:] == [2, 4, 5]
    assert sorted(evaluated(pfvs, 99)) == sorted(right)
    assert evaluated(pfvs, 2, among=set(range(12, 30))) == [12, 21]


def test_nothing_to_evaluate_is_named():
    with pytest.raises(ValueError, match="no picture of views right"):
        evaluated(dataset([0, 1], right=set()), 2)

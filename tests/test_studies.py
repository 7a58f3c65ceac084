"""report/studies.py: studies are what the functions find, are kept, and choose fair pictures."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import random_network

from gig_helpers import Concepts
from gig_helpers.codes import picture_codes
from gig_helpers.curves import SCORES, class_curves, interlayer_curves
from gig_helpers.data import profiles
from gig_helpers.importance import class_importance
from gig_helpers.report.studies import (
    WRONG_TARGET,
    class_study,
    evaluated,
    interlayer_study,
    seen_right,
)

METHODS = ["random", "gig"]
LABELS = [0, 1, 2]
PROFILE = replace(profiles.get("quick"), gap=0.05, bracket=0.05, evaluation_targets=2)
# Batches of another size round differently in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SHARES = torch.linspace(0, 1, 29)

pytestmark = pytest.mark.usefixtures("artifacts_folder")


@pytest.fixture
def parts():
    """A small network, three pictures, concepts of two blocks."""
    network = random_network("v1.5", width_per_group=8)
    images = torch.randn(3, 3, 64, 64)
    concepts = {}
    for block, x in network.preactivations(images, ("layer3.0", "layer4.0")).items():
        beta = network.bn_shift(block)
        vectors = x.transpose(0, 1).flatten(1).T[:7] - beta
        concepts[block] = Concepts(vectors.clone(), beta, torch.zeros(7), block, lam=0.5)
    return network, images, concepts


def run(network, images, concepts, count, profile=PROFILE):
    """Both studies of the first pictures."""
    given = (network, images[:count], LABELS[:count])
    here, there = concepts.values()
    one = class_study(*given, here, METHODS, profile)
    return one, interlayer_study(*given, here, there, METHODS, profile)


def test_what_is_there_is_not_run_again(parts, artifacts_folder, monkeypatch):
    network, images, concepts = parts
    first = run(network, images, concepts, 2)
    made = len(list(artifacts_folder.iterdir()))
    with monkeypatch.context() as patch:
        for name in ("preactivations", "propagate"):
            patch.setattr(network, name, None)
        # Another batch size is not another study.
        again = run(network, images, concepts, 2, replace(PROFILE, batch_size=3))
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(one.importance[m], other.importance[m]) for m in METHODS)
    third = run(network, images, concepts, 3)
    assert len(list(artifacts_folder.iterdir())) == made * 3 // 2
    for one, other in zip(first, third, strict=True):
        assert all(torch.equal(one.importance[m], other.importance[m][:2]) for m in METHODS)


def test_a_class_study_is_what_the_functions_find(parts):
    network, images, concepts = parts
    here = concepts["layer3.0"]
    study = class_study(network, images, LABELS, here, METHODS, PROFILE)
    assert list(study.curves) == list(study.importance) == METHODS and study.targets is None
    u = picture_codes(network, images, concepts)["layer3.0"]
    given = (network, u, here)
    importance = class_importance("gig", *given, [[c] for c in LABELS], tolerance=0.05)
    torch.testing.assert_close(study.importance["gig"], importance, **CLOSE)
    assert (study.gaps["gig"] <= 0.05 + 1e-4).all(), "what is kept is what was asked for"
    change = study.curves["gig"]["logit"].insertion.y[:, [0, -1]].diff(dim=1)
    found = (importance.sum(dim=2) - change).abs() / change.abs()
    torch.testing.assert_close(study.gaps["gig"], found.float(), rtol=1e-2, atol=1e-4)
    assert study.importance["random"].unique(dim=0).shape[0] == 3, "a draw per picture"
    for method in METHODS:
        direct = class_curves(*given, study.importance[method][:, 0], LABELS, tolerance=0.05)
        assert set(direct) == set(study.curves[method]) == set(SCORES)
        for score, curves in direct.items():
            for way in ("deletion", "insertion"):
                stored, other = (getattr(c, way) for c in (study.curves[method][score], curves))
                torch.testing.assert_close(stored.at(SHARES), other.at(SHARES), **CLOSE)


def test_a_wrong_target_of_a_class_study_is_the_next_other_class(parts):
    network, images, concepts = parts
    here, labels = concepts["layer3.0"], [LABELS[0], LABELS[0], LABELS[0] + 1]
    study = class_study(network, images, labels, here, ["random", WRONG_TARGET], PROFILE)
    u = picture_codes(network, images, concepts)["layer3.0"]
    others = [[LABELS[0] + 1], [LABELS[0] + 1], [LABELS[0]]]
    found = class_importance("gig", network, u, here, others, tolerance=0.05)
    torch.testing.assert_close(study.importance[WRONG_TARGET], found, **CLOSE)
    with pytest.raises(ValueError, match="two classes"):
        class_study(network, images, [LABELS[0]] * 3, here, [WRONG_TARGET], PROFILE)


def test_an_interlayer_study_is_what_the_functions_find(parts):
    network, images, concepts = parts
    here, there = concepts.values()
    orders = [*METHODS, WRONG_TARGET]
    study = interlayer_study(network, images, LABELS, here, there, orders, PROFILE)
    codes = picture_codes(network, images, concepts)
    assert list(study.curves) == list(study.importance) == orders
    assert study.targets.shape == (3, 2)
    assert torch.equal(study.importance[WRONG_TARGET], study.importance["gig"][:, [1, 0]])
    relevance = class_importance(
        "gig", network, codes["layer4.0"], there, [[c] for c in LABELS], tolerance=0.05
    )[:, 0]
    for n, chosen in enumerate(study.targets.tolist()):
        present = (codes["layer4.0"][n] > 0).any(0)
        assert present[chosen].all()
        assert relevance[n, chosen[0]] >= relevance[n, chosen[1]]
    assert (study.gaps["gig"] <= 0.05 + 1e-4).all()
    assert study.gaps["random"].max() > 0.05, "nothing makes a random order complete"
    vectors = there.vectors[study.targets]
    for method in orders:
        direct = interlayer_curves(
            network, codes["layer3.0"], here, "layer4.0", vectors, study.importance[method],
            tolerance=0.05,
        )  # fmt: skip
        for way in ("deletion", "insertion"):
            stored, other = (getattr(c, way) for c in (study.curves[method], direct))
            torch.testing.assert_close(stored.at(SHARES), other.at(SHARES), **CLOSE)


def test_bad_input_is_named(parts):
    network, images, concepts = parts
    here, there = concepts.values()
    with pytest.raises(ValueError, match="2 classes for 3 pictures"):
        class_study(network, images, [0, 1], here, METHODS, PROFILE)
    with pytest.raises(ValueError, match="2 classes for 3 pictures"):
        interlayer_study(network, images, [0, 1], here, there, METHODS, PROFILE)
    with pytest.raises(ValueError, match="unknown method 'best'"):
        class_study(network, images[:1], [0], here, ["best"], PROFILE)
    many = replace(PROFILE, evaluation_targets=8)
    with pytest.raises(ValueError, match=r"has \d targets at layer4.0, not 8"):
        interlayer_study(network, images[:1], [0], here, there, METHODS, many)


def sets(photographs, right):
    """Pictures and dataset: the photograph of each view, and those that the network gets right."""
    labels = [1] * len(photographs)
    seen = torch.tensor([1 if i in right else 0 for i in range(len(labels))])
    dataset = SimpleNamespace(predictions=lambda: seen, photographs=torch.tensor(photographs))
    return SimpleNamespace(name="views", labels=labels), dataset


def test_evaluated_pictures_are_spread_over_the_photographs():
    views = [n for n in range(10) for _ in range(3)]  # three views of each of ten photographs
    right = set(range(30)) - {0, 6, 7, 8}  # one view of the first, all of the third
    pictures, dataset = sets(views, right)
    assert seen_right(pictures, dataset) == sorted(right)
    # The first view that is right of each photograph that has one:
    first = [1, 3, 9, 12, 15, 18, 21, 24, 27]
    assert evaluated(pictures, dataset, 9) == first
    assert evaluated(pictures, dataset, 3) == [1, 12, 21]
    # Also where they do not go into each other without a rest: the last ones are not left out.
    assert evaluated(pictures, dataset, 5) == [1, 3, 12, 18, 24]
    found = evaluated(pictures, dataset, 12)
    assert found[:9] == first and found[9:] == [2, 4, 5]
    assert sorted(evaluated(pictures, dataset, 99)) == sorted(right)
    assert evaluated(pictures, dataset, 2, among=set(range(12, 30))) == [12, 21]


def test_nothing_to_evaluate_is_named():
    pictures, dataset = sets([0, 1], right=set())
    with pytest.raises(ValueError, match="no picture of views right"):
        evaluated(pictures, dataset, 2)
